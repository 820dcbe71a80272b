"""POMATO on streams: any weights give well-formed results, and bad input a clear error."""

import copy

import pytest
import torch
from pomato_fixtures import relative_l2
from pomato_stream import (
    T,
    assert_well_formed,
    config,
    model_file,
    network,
    noise_frame,
    predictor,
)
from real_sequence import require
from rendered_stream import frames
from stream_run import run

from recon4d_ros.cli.main import main
from recon4d_ros.config import Config
from recon4d_ros.datatypes import Intrinsics, IntrinsicsSource, Window
from recon4d_ros.errors import ConfigError, ModelError, PredictorError
from recon4d_ros.networks.pomato import Features
from recon4d_ros.pipeline.factory import build_reconstructor
from recon4d_ros.pipeline.reconstructor import Reconstructor
from recon4d_ros.predictors.devices import choose_device, onnx_providers
from recon4d_ros.predictors.dynpt.loading import load_tracker
from recon4d_ros.predictors.pomato.engine import Engine
from recon4d_ros.predictors.pomato.loading import load_predictor
from recon4d_ros.predictors.pomato.predictor import PomatoPredictor
from recon4d_ros.predictors.pomato.temporal import Held, TemporalModel

KINDS = [("temporal", "incremental"), ("temporal", "exact"), ("pairwise", "incremental")]


@pytest.mark.parametrize(("kind", "mode"), KINDS)
def test_random_weights_give_well_formed_results(kind, mode):
    settings = config(pomato__mode=mode)
    stream = frames("demo", 9, width=160, step=3)
    done = run(Reconstructor(settings, predictor(kind, pomato__mode=mode)), stream)
    assert [r.frame.index for r in done.provisional] == list(range(9))
    assert [r.frame.index for r in done.finals()] == list(range(9))
    for result in (*done.provisional, *done.finals()):
        assert_well_formed(result)
        assert result.intrinsics.size == (64, 80)


@pytest.mark.parametrize("kind", ["temporal", "pairwise"])
def test_the_command_line_takes_a_model_file(kind, tmp_path):
    """From the factory on, with images of another size than the network's and unknown camera."""
    settings = config(pomato__model=str(model_file(kind, tmp_path)))
    stream = [noise_frame(index, (50, 90)) for index in range(6)]
    done = run(build_reconstructor(settings), stream)
    for result in (*done.provisional, *done.finals()):
        assert_well_formed(result)
        assert result.intrinsics_source is IntrinsicsSource.ESTIMATED


def test_frames_for_their_pose_only_spare_the_third_head():
    sparing = predictor()
    sparing.track(noise_frame(0))
    known = sparing.track(noise_frame(1), dense=False)
    assert not known.is_dense
    assert known.flows == known.matchings == ()
    assert bool(known.depth.isnan().all())
    assert sparing.track(noise_frame(2)).matchings[0].target == 0


def test_a_start_shorter_than_the_window_is_padded_and_says_so():
    fresh = predictor()
    stream = tuple(noise_frame(index) for index in range(3))
    assert [fresh.track(frame).num_padding for frame in stream] == [3, 2, 1]
    assert fresh.predict(Window(stream, 3)).num_padding == 3


def test_padding_repeats_the_last_frame():
    """Two frames are the same as a window whose last frame comes three times."""
    engine = Engine(network("temporal"))
    model = TemporalModel(engine, T)
    images = [noise_frame(index).rgb for index in (0, 1, 1, 1)]
    features = {i: engine.encode(image) for i, image in enumerate(images)}
    short = model.rekeyed(features, 0, (0, 1))
    full = model.rekeyed(features, 0, (0, 1, 2, 3))
    for a, b in zip(
        model.edges(short, (0, 1), True), model.edges(full, (0, 1), True), strict=True
    ):
        assert relative_l2(a.now.points, b.now.points) < 1e-6
        assert relative_l2(a.then.points, b.then.points) < 1e-6
        assert (a.num_padding, b.num_padding) == (2, 0)


def test_incremental_and_exact_agree_where_they_must_and_differ_a_little_elsewhere():
    """With one keyframe, the newest frame of a full window is the same; older ones lack context.

    Incremental evaluates a frame when it comes, the exact window when T frames are there: a frame
    was then seen with padding, or with older neighbours.
    """
    engine = Engine(network("temporal"))
    model = TemporalModel(engine, T)
    features = {index: engine.encode(noise_frame(index).rgb) for index in range(T)}
    edge, ring = model.alone(0, features[0])
    arrived = [edge]
    for index in range(1, T):
        (edge,), ring = model.arrived(index, features[index], Held(0, features, ring), True)
        arrived.append(edge)
    exact = model.edges(model.rekeyed(features, 0, range(T)), range(T), True)
    away = [relative_l2(a.now.points, e.now.points) for a, e in zip(arrived, exact, strict=True)]
    print("incremental against exact, rel-L2 by frame:", [f"{d:.2g}" for d in away])
    assert away[-1] < 1e-6
    assert relative_l2(arrived[-1].then.points, exact[-1].then.points) < 1e-6
    assert all(1e-4 < distance < 1.0 for distance in away[:-1])  # 0.14 to 0.56


def test_reset_makes_it_as_new():
    used, fresh = predictor(), predictor()
    for index in range(5):
        used.track(noise_frame(index + 7))
    used.reset()
    for index in range(5):
        a, b = used.track(noise_frame(index)), fresh.track(noise_frame(index))
        assert torch.equal(a.depth.nan_to_num(-1), b.depth.nan_to_num(-1))


def test_everything_that_is_kept_is_bounded():
    stream = predictor(pomato__keyframe_interval=5)
    for index in range(30):
        stream.track(noise_frame(index))
        if index >= T:
            stream.predict(Window(tuple(noise_frame(i) for i in range(index - 3, index + 1)), 1))
        state = stream._state
        assert len(state.seen) <= 9
        assert len(state.features) <= 9
        assert len(state.ring.indices) <= T


# Bad input -----------------------------------------------------------------------------------


class Starved:
    """A network on a device whose memory holds few pairs at a time."""

    def __init__(self, most):
        self._net, self._most = network("temporal"), most
        self.temporal_length = T

    def encode(self, images):
        return self._net.encode(images)

    def decode(self, first, second):
        if len(second.tokens) > self._most:
            raise torch.cuda.OutOfMemoryError("no memory")
        return self._net.decode(first, second)

    def head(self, number, tokens, frames=None, chunk=4):
        return self._net.head(number, tokens, frames, chunk)


def test_out_of_memory_halves_the_batch_goes_on_and_is_reported():
    engine = Engine(Starved(1), batch=4)
    starved, plenty = (TemporalModel(each, T) for each in (engine, Engine(network("temporal"))))
    features = {index: engine.encode(noise_frame(index).rgb) for index in range(T)}
    a, b = (model.rekeyed(features, 3, range(T)) for model in (starved, plenty))
    for ours, theirs in zip(a.tokens, b.tokens, strict=True):
        assert relative_l2(ours.levels[3], theirs.levels[3]) < 1e-5
    described = PomatoPredictor(config(), engine).description
    assert (described["out_of_memory"], described["batch"]) == ("2", "1")


def test_too_little_memory_for_one_pair_says_what_to_lower():
    starved = PomatoPredictor(config(), Engine(Starved(0)))
    with pytest.raises(PredictorError, match=r"too little memory.*pomato\.long_side"):
        starved.track(noise_frame(0))


def test_the_memory_bound_takes_smaller_batches_first_then_refuses(tmp_path):
    path = str(model_file("temporal", tmp_path))
    roomy = {"pomato__model": path, "pomato__batch": 64, "pomato__long_side": 512}
    assert load_predictor(config(**roomy)).description["batch"] == "64"
    less = load_predictor(config(**roomy, pomato__memory_mib=256)).description["batch"]
    assert 1 <= int(less) < 64
    with pytest.raises(ConfigError, match=r"memory_mib=64 .* lower pomato\.long_side"):
        load_predictor(config(**{**roomy, "pomato__long_side": 2048}, pomato__memory_mib=64))


def test_a_model_of_another_kind_or_length_is_refused(tmp_path):
    temporal, pairwise = (str(model_file(kind, tmp_path)) for kind in ("temporal", "pairwise"))
    with pytest.raises(ConfigError, match=r"kind=pairwise but the model is temporal"):
        load_predictor(config(pomato__model=temporal, pomato__kind="pairwise"))
    with pytest.raises(ConfigError, match=r"kind=temporal but the model is pairwise"):
        load_predictor(config(pomato__model=pairwise, pomato__kind="temporal"))
    with pytest.raises(ConfigError, match=r"window\.size=12 .* 4 frames; set window\.size=4"):
        load_predictor(config(pomato__model=temporal, window__size=12))


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "cuda:x", "cpu:1"])
def test_a_device_that_does_not_exist_is_refused(name):
    with pytest.raises(ConfigError, match=r"pomato\.device"):
        choose_device(name, "pomato.device")


def test_half_precision_needs_a_device_that_has_it(tmp_path):
    with pytest.raises(ConfigError, match="fp16 needs a CUDA device"):
        load_predictor(config(pomato__model=str(tmp_path / "any.pth"), pomato__precision="fp16"))


def test_providers_follow_runtime_and_device():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    names = [
        [name.removesuffix("ExecutionProvider") for name in onnx_providers(*asked, "p.runtime")]
        for asked in (("onnx", cpu), ("onnx", cuda), ("tensorrt", torch.device("cuda:0")))
    ]
    assert names == [["CPU"], ["CUDA", "CPU"], ["Tensorrt", "CUDA", "CPU"]]
    with pytest.raises(ConfigError, match=r"first CUDA device, not on cuda:1; "):
        onnx_providers("onnx", torch.device("cuda:1"), "p.runtime")


@pytest.mark.parametrize("section", ["pomato", "tracker"])
def test_tensorrt_needs_a_cuda_device(section, tmp_path):
    asked = {f"{section}__model": str(tmp_path), f"{section}__runtime": "tensorrt"}
    load = load_predictor if section == "pomato" else load_tracker
    with pytest.raises(ConfigError, match=rf"{section}\.runtime=tensorrt needs a CUDA device"):
        load(config(**asked, **{f"{section}__device": "cpu"}))


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
def test_graphs_of_cuda_need_it(tmp_path, runtime):
    path = str(tmp_path / "any.pth")
    asked = {"pomato__model": path, "pomato__runtime": runtime, "pomato__cuda_graphs": True}
    with pytest.raises(ConfigError, match=rf"cuda_graphs needs .* it is {runtime} on cpu"):
        load_predictor(config(**asked, pomato__device="cpu"))


def test_bf16_is_close_to_fp32(tmp_path):
    path = str(model_file("pairwise", tmp_path))
    full, half = (
        load_predictor(config(pomato__model=path, pomato__precision=name))
        for name in ("fp32", "bf16")
    )
    a, b = (each.track(noise_frame(0)) for each in (full, half))
    both = a.depth.isfinite() & b.depth.isfinite()
    assert half.description["precision"] == "bfloat16"
    assert relative_l2(b.depth[both], a.depth[both]) < 0.1


def test_a_missing_model_is_an_error_before_anything_is_downloaded(tmp_path):
    with pytest.raises(ModelError, match=r"pomato\.model is empty"):
        load_predictor(config())
    with pytest.raises(ModelError, match="does not exist"):
        load_predictor(config(pomato__model=str(tmp_path / "none.safetensors")))


def test_sides_that_are_no_whole_patches_are_refused():
    with pytest.raises(ConfigError, match=r"long_side=100 is no multiple of 16; set it to 96"):
        predictor(pomato__long_side=100)


def test_another_camera_is_refused_and_changes_nothing():
    stream = predictor()
    stream.track(noise_frame(0))
    before = stream._state
    with pytest.raises(PredictorError, match="frame 1 is 64 x 48, the stream 80 x 48"):
        stream.track(noise_frame(1, (48, 64)))
    other = Intrinsics(70.0, 70.0, 40.0, 24.0, 80, 48)
    with pytest.raises(PredictorError, match="other intrinsics"):
        stream.track(noise_frame(1, intrinsics=other))
    assert stream._state is before
    with pytest.raises(PredictorError, match=r"\[1\] were not tracked"):
        stream.predict(Window((noise_frame(0), noise_frame(1)), 2))


def test_features_of_the_cache_have_the_type_of_the_arithmetic():
    net = copy.deepcopy(network("pairwise")).to(torch.bfloat16)
    features = Engine(net, dtype=torch.bfloat16).encode(noise_frame(0).rgb)
    assert isinstance(features, Features)
    assert features.tokens.dtype is torch.bfloat16


@pytest.mark.data
@pytest.mark.parametrize("kind", ["temporal", "pairwise"])
def test_recon4d_run_reconstructs_real_images(kind, tmp_path):
    sequence = require("tum_fr2_desk_clip20")
    settings = config(pomato__model=str(model_file(kind, tmp_path))).flat()
    chosen = [f"{name}={settings[name]}" for name in settings if _differs(name, settings[name])]
    words = ["run", str(sequence), "--out", str(tmp_path / "out"), "--max-frames", "6"]
    assert main([*words, *(word for text in chosen for word in ("--set", text))]) == 0
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 6


def _differs(name, value):
    return Config().get(name) != value
