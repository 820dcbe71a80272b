"""POMATO as ONNX: the parts compute what the network does, and every fault is refused."""

import json
import math
import shutil

import pytest
import torch
from command_line import error_line, recon4d
from pomato_fixtures import (
    EXPORT_SIZE,
    SHALLOW,
    relative_l2,
    rule_images,
    rule_net,
    shallow_export,
    shallow_temporal,
)
from pomato_stream import config, noise_frame

from recon4d_ros.errors import ConfigError, ModelError, OutputError
from recon4d_ros.networks import onnx_session
from recon4d_ros.networks.pomato import Features, onnx_export
from recon4d_ros.networks.pomato.onnx_export import export_onnx
from recon4d_ros.networks.pomato.onnx_folder import DESCRIPTION
from recon4d_ros.networks.pomato.onnx_runtime import OnnxPomato
from recon4d_ros.predictors.pomato.loading import load_predictor

# Tracing a network takes a minute, more on a busy machine.
pytestmark = pytest.mark.timeout(600)

HEIGHT, WIDTH = EXPORT_SIZE
EXACT, HALF = 2e-5, 5e-3


@pytest.fixture(scope="module")
def pairwise():
    return rule_net(SHALLOW)


@pytest.fixture(scope="module")
def pairwise_folder(pairwise, tmp_path_factory):
    """A pairwise network in half precision."""
    folder = tmp_path_factory.mktemp("pairwise")
    export_onnx(pairwise, folder, HEIGHT, WIDTH, "fp16")
    return folder


@pytest.fixture(scope="module")
def temporal_folder(tmp_path_factory):
    return shallow_export(tmp_path_factory.mktemp("temporal"))


def images(number, seed=0):
    return rule_images((number, 3, HEIGHT, WIDTH), seed)


def assert_equal(ours, theirs, limit):
    for a, b in zip(ours, theirs, strict=True):
        assert relative_l2(a, b) < limit


@torch.no_grad()
def assert_same_parts(net, ours, rows1, rows2, limit, frames=None):
    clip = images(max(rows1 + rows2) + 1)
    features, wanted = ours.encode(clip), net.encode(clip)
    assert features.grid == wanted.grid
    assert_equal((features.tokens,), (wanted.tokens,), limit)
    tokens = ours.decode(features[rows1], features[rows2])
    expected = net.decode(wanted[rows1], wanted[rows2])
    for held, other in zip(tokens, expected, strict=True):
        assert_equal(held.levels, other.levels, limit)
    for head in (1, 2, 3):
        branch = 0 if head == 1 else 1
        found = ours.head(head, tokens[branch], frames, chunk=3)
        assert_equal(found, net.head(head, expected[branch], frames), limit)


@pytest.mark.parametrize("num_pairs", [1, 2, 5])
def test_any_number_of_pairs(pairwise, pairwise_folder, num_pairs):
    ours = OnnxPomato.from_folder(pairwise_folder, ["CPUExecutionProvider"])
    assert ours.temporal_length is None
    rows = list(range(num_pairs))
    assert_same_parts(pairwise, ours, rows, rows[::-1], HALF)


@pytest.mark.parametrize("num_clips", [1, 3])
@pytest.mark.parametrize("frames", [None, [3], [0, 2]])
def test_windows(temporal_folder, num_clips, frames):
    net = shallow_temporal()
    ours = OnnxPomato.from_folder(temporal_folder)
    assert ours.temporal_length == net.temporal_length == 4
    keys = [4 * clip + 3 for clip in range(num_clips) for _ in range(4)]
    assert_same_parts(net, ours, keys, list(range(4 * num_clips)), EXACT, frames)


def test_the_description_states_sizes_and_small_errors(temporal_folder, pairwise_folder):
    for folder, length in ((temporal_folder, 4), (pairwise_folder, None)):
        content = json.loads((folder / DESCRIPTION).read_text())
        assert (content["height"], content["width"]) == (HEIGHT, WIDTH)
        assert content["temporal_length"] == length
        assert len(content["errors"]) == 13
        worst = max(content["errors"].values())
        assert worst < EXACT if length else EXACT < worst < HALF
        files = {path.name for path in folder.iterdir()} - {DESCRIPTION}
        assert files == content["sha256"].keys()


def test_half_precision_is_inside_only(pairwise, pairwise_folder):
    ours = OnnxPomato.from_folder(pairwise_folder)
    features = ours.encode(images(2))
    assert features.tokens.dtype == torch.float16
    assert ours.head(2, ours.decode(features, features)[1]).points.dtype == torch.float32
    assert all(weight.dtype == torch.float32 for weight in pairwise.parameters())


def test_only_some_heads(pairwise_folder):
    ours = OnnxPomato.from_folder(pairwise_folder, heads=(2,))
    features = ours.encode(images(1))
    _, tokens = ours.decode(features, features)
    assert ours.head(2, tokens).conf.shape == (1, HEIGHT, WIDTH)
    with pytest.raises(ModelError, match="head 3 is not loaded"):
        ours.head(3, tokens)


def test_input_that_does_not_fit(pairwise_folder, temporal_folder):
    ours = OnnxPomato.from_folder(pairwise_folder)
    with pytest.raises(ModelError, match=r"80 x 48, the network was exported for 48 x 80"):
        ours.encode(images(1).mT.contiguous())
    features = ours.encode(images(2))
    with pytest.raises(ModelError, match="1 first and 2 second"):
        ours.decode(features[:1], features)
    turned = Features(features.tokens, features.grid[::-1])
    with pytest.raises(ModelError, match=r"grid \(5, 3\)"):
        ours.decode(turned, turned)
    ours = OnnxPomato.from_folder(temporal_folder)
    features = ours.encode(images(3))
    with pytest.raises(ModelError, match="3 pairs; expected windows of 4"):
        ours.head(1, ours.decode(features, features)[0])


@pytest.mark.parametrize(
    ("providers", "message"),
    [
        (["NoSuchProvider", "CPUExecutionProvider"], "NoSuchProvider.*choose among these"),
        ([], "providers are none"),
    ],
)
def test_providers_that_do_not_exist(pairwise_folder, providers, message):
    with pytest.raises(ModelError, match=message):
        OnnxPomato.from_folder(pairwise_folder, providers)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_does_not_load_is_no_silent_fallback(pairwise_folder, monkeypatch):
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    runtime = onnx_session.onnx_runtime()
    # ONNX Runtime for a GPU without its libraries: there is the provider, and sessions lack it.
    monkeypatch.setattr(runtime, "get_available_providers", lambda: providers)
    with pytest.raises(ModelError, match="CUDAExecutionProvider did not load"):
        OnnxPomato.from_folder(pairwise_folder, providers)


@pytest.fixture
def copied(pairwise_folder, tmp_path):
    return shutil.copytree(pairwise_folder, tmp_path / "copy")


def refused(folder, *words):
    with pytest.raises(ModelError) as caught:
        OnnxPomato.from_folder(folder)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "recon4d export" in str(caught.value)


def test_missing_files(copied):
    (copied / "head2_fine.onnx.data").unlink()
    refused(copied, "head2_fine.onnx.data is missing")
    OnnxPomato.from_folder(copied, heads=(1,))
    (copied / DESCRIPTION).unlink()
    refused(copied, DESCRIPTION)
    refused(copied / "nowhere", DESCRIPTION)


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx.data"])
def test_damaged_files(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    refused(copied, name, "is damaged")


@pytest.mark.parametrize(
    "change",
    [
        {"format": "another"},
        {"temporal_length": "4"},
        {"height": 50},
        {"precision": "int4"},
        {"sha256": {}},
        {"extra": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_descriptions_of_another_kind(copied, change):
    content = json.loads((copied / DESCRIPTION).read_text())
    (copied / DESCRIPTION).write_text(json.dumps(content | change))
    refused(copied, DESCRIPTION)
    (copied / DESCRIPTION).write_text("{")
    refused(copied, DESCRIPTION)


def test_a_file_that_is_vouched_for_but_no_network(copied):
    (copied / "encoder.onnx").write_bytes(b"no protobuf")
    content = json.loads((copied / DESCRIPTION).read_text())
    content["sha256"]["encoder.onnx"] = onnx_export.sha256_of(copied / "encoder.onnx")
    (copied / DESCRIPTION).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"cannot load .*encoder\.onnx"):
        OnnxPomato.from_folder(copied)


@pytest.mark.parametrize("size", [(40, 64), (0, 16), (64, -16)])
def test_sizes_that_are_no_whole_patches(pairwise, tmp_path, size):
    with pytest.raises(ModelError, match="multiples of 16"):
        export_onnx(pairwise, tmp_path, *size)


def test_a_folder_that_cannot_be_written(pairwise, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another place"):
        export_onnx(pairwise, tmp_path / "file" / "out", HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("precision", "error"), [("fp32", 2e-4), ("fp32", math.nan), ("fp16", math.inf)]
)
def test_files_that_compute_something_else_are_refused(precision, error):
    with pytest.raises(ModelError, match="are wrong: head 1 points differs by"):
        onnx_export.check_errors({"encoder": 1e-6, "head 1 points": error}, precision)
    onnx_export.check_errors({"encoder": 1e-6, "head 1 points": 9e-5}, precision)


def test_the_command_does_not_write_over_an_export(temporal_folder, capsys):
    assert recon4d("export", "absent.pth", "--out", temporal_folder) == 2
    assert "add --overwrite" in error_line(capsys)
    assert recon4d("export", "absent.pth", "--out", temporal_folder, "--overwrite") == 2
    assert "absent.pth: does not exist" in error_line(capsys)


def test_a_stream_is_the_same_on_both_runtimes(temporal_folder):
    model = temporal_folder.with_name("model.safetensors")
    on_torch = load_predictor(config(pomato__model=str(model)))
    settings = config(pomato__model=str(temporal_folder), pomato__runtime="onnx")
    on_onnx = load_predictor(settings)
    for index in range(3):
        a, b = (each.track(noise_frame(index)) for each in (on_torch, on_onnx))
        assert torch.allclose(a.depth, b.depth, rtol=1e-3, atol=1e-4, equal_nan=True)


def test_a_stream_of_another_size_or_precision_is_refused(temporal_folder):
    settings = {"pomato__model": str(temporal_folder), "pomato__runtime": "onnx"}
    stream = load_predictor(config(**settings))
    with pytest.raises(ModelError, match="exported for 48 x 80"):
        stream.track(noise_frame(0, (60, 80)))
    with pytest.raises(ConfigError, match="no effect on runtime onnx"):
        load_predictor(config(**settings, pomato__precision="bf16"))
