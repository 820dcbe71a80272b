"""Checkpoints of POMATO: every spelling that loads, and every fault that is refused."""

import argparse
import dataclasses
import os
import warnings

import pytest
import torch
from pomato_fixtures import TINY, require, rule_net
from safetensors.torch import save_file

from recon4d_ros.errors import ModelError, OutputError
from recon4d_ros.networks.pomato import PomatoNet, load_checkpoint, save_safetensors

HEAD1 = "downstream_head1.dpt."


@pytest.fixture(scope="module")
def state():
    return rule_net(TINY).state_dict()


@pytest.fixture(scope="module")
def temporal_state():
    return rule_net(dataclasses.replace(TINY, temporal_length=6)).state_dict()


def written(folder, tensors, suffix=".pth"):
    """File of tensors as the published ones are: options of the training beside the weights."""
    path = folder / f"net{suffix}"
    if suffix == ".safetensors":
        save_file({name: held.clone().contiguous() for name, held in tensors.items()}, path)
    else:
        args = argparse.Namespace(model="PomatoNet(depth=12)", lr=1e-4, mode=["a", None])
        torch.save({"args": args, "model": dict(tensors), "epoch": 3}, path)
    return path


def load(path):
    return PomatoNet.from_file(path, 4, 4)


def refused(path, *words):
    with pytest.raises(ModelError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: "), message
    assert all(word in message for word in words), message
    assert len(message) < 1000, message


@pytest.fixture(autouse=True)
def no_remarks():
    """A sound file loads without a remark."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def assert_holds(net, expected):
    ours = net.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], held) for name, held in expected.items())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_both_kinds_of_files(tmp_path, state, suffix):
    net = load(written(tmp_path, state, suffix))
    assert_holds(net, state)
    assert not net.training and net.sizes == TINY
    assert all(held.requires_grad for held in net.parameters())


def test_a_bare_dictionary_of_tensors(tmp_path, state):
    torch.save(dict(state), tmp_path / "net.pt")
    assert_holds(load(tmp_path / "net.pt"), state)


def test_temporal_models_tell_their_length(tmp_path, temporal_state):
    net = load(written(tmp_path, temporal_state))
    assert net.temporal_length == 6
    assert_holds(net, temporal_state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, state, dtype):
    narrow = {name: held.to(dtype) for name, held in state.items()}
    net = load(written(tmp_path, narrow))
    assert_holds(net, {name: held.float() for name, held in narrow.items()})


@pytest.mark.parametrize("kept", ["layer_rn", "second names", "both"])
def test_second_names(tmp_path, state, kept):
    tensors = dict(state)
    for name, held in state.items():
        if ".layer_rn." in name:
            number = int(name.split(".")[-2])
            second = name.replace(f"layer_rn.{number}", f"layer{number + 1}_rn")
            if kept != "layer_rn":
                tensors[second] = held
            if kept == "second names":
                del tensors[name]
    path = written(tmp_path, tensors)
    assert_holds(load(path), state)
    assert load_checkpoint(path, 4, 4).unexpected == ()


def test_second_names_must_agree(tmp_path, state):
    name = f"{HEAD1}scratch.layer_rn.1.weight"
    second = state | {f"{HEAD1}scratch.layer2_rn.weight": state[name] + 1.0}
    refused(written(tmp_path, second), name, "layer2_rn.weight differ")


def test_missing_parts_are_copies_of_their_twins(tmp_path, state):
    parts = {"dec_blocks2.": "dec_blocks.", "downstream_head3.": "downstream_head2."}
    kept = {name: held for name, held in state.items() if not name.startswith(tuple(parts))}
    path = written(tmp_path, kept)
    assert load_checkpoint(path, 4, 4).copied == tuple(parts)
    with pytest.warns(UserWarning, match=r"dec_blocks2\. and downstream_head3\. are missing"):
        net = load(path)
    held = net.state_dict()
    for part, twin in parts.items():
        copies = [name for name in held if name.startswith(part)]
        assert copies
        for name in copies:
            original = held[twin + name[len(part) :]]
            assert torch.equal(held[name], original)
            assert held[name].data_ptr() != original.data_ptr()


def test_unexpected_tensors_are_reported(tmp_path, state):
    path = written(tmp_path, state | {"downstream_head1.local_features.weight": torch.ones(2)})
    assert load_checkpoint(path, 4, 4).unexpected == ("downstream_head1.local_features.weight",)
    with pytest.warns(UserWarning, match="1 tensors are not used: downstream_head1.local"):
        assert_holds(load(path), state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_written_networks_load_again_with_their_heads(tmp_path, state, dtype):
    net = rule_net(TINY)
    path = tmp_path / "small.safetensors"
    save_safetensors(net.double(), path, dtype)
    again = PomatoNet.from_file(path)
    assert again.sizes == TINY
    assert_holds(again, state)  # weights by rule are exact in half precision


def test_a_file_may_be_replaced_while_its_network_lives(tmp_path, state):
    path = written(tmp_path, state, ".safetensors")
    net = load(path)
    path.write_bytes(b"")
    assert_holds(net, state)
    save_safetensors(net, path)
    assert_holds(load(path), state)


def test_what_cannot_be_written(tmp_path):
    net = rule_net(TINY)
    with pytest.raises(OutputError, match=r"ends in \.safetensors"):
        save_safetensors(net, tmp_path / "net.pth")
    with pytest.raises(OutputError, match="choose another place"):
        save_safetensors(net, tmp_path / "missing" / "net.safetensors")
    with torch.no_grad():
        net.enc_norm.weight[0] = 1e6
    with pytest.raises(ModelError, match="type is too narrow"):
        save_safetensors(net, tmp_path / "net.safetensors", torch.float16)
    assert not list(tmp_path.iterdir())


def test_stored_networks_have_the_sizes_of_the_rule():
    assert load_checkpoint(require("tiny_pairwise.safetensors"), 4, 4).sizes == TINY
    temporal = load_checkpoint(require("tiny_temporal.safetensors"), 4, 4)
    assert temporal.sizes == dataclasses.replace(TINY, temporal_length=4)
    assert temporal.unexpected == temporal.copied == ()


# What is refused.


def test_no_file_a_folder_and_a_strange_name(tmp_path):
    refused(tmp_path / "absent.pth", "does not exist")
    refused(tmp_path, "is a directory")
    (tmp_path / "net.onnx").write_bytes(b"x")
    refused(tmp_path / "net.onnx", "'.onnx'", ".safetensors")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_empty_truncated_and_foreign_files(tmp_path, state, suffix):
    path = written(tmp_path, state, suffix)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:100], b"<html>not found</html>" * 9):
        path.write_bytes(content)
        refused(path, "again")


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_never_run(tmp_path, state, legacy):
    path, sprung = tmp_path / "net.pth", tmp_path / "sprung"
    content = {"args": Trap(sprung), "model": dict(state)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    refused(path, "never run")
    assert not sprung.exists()


def test_a_pickle_of_something_else(tmp_path):
    torch.save([1, 2], tmp_path / "net.pth")
    refused(tmp_path / "net.pth", "holds a list")
    torch.save({"model": "text"}, tmp_path / "net.pth")
    refused(tmp_path / "net.pth", "holds a str")


def test_another_network(tmp_path):
    path = written(tmp_path, {"conv1.weight": torch.ones(8, 3, 7, 7), "fc.bias": torch.ones(8)})
    refused(path, "no tensor decoder_embed.weight", "conv1.weight", "POMATO")
    refused(written(tmp_path, {}), "nothing")


def test_missing_tensors_are_counted(tmp_path, state):
    gone = [name for name in state if name.startswith(f"{HEAD1}scratch.refinenet2")]
    kept = {name: held for name, held in state.items() if name not in gone}
    refused(written(tmp_path, kept), f"lacks {len(gone)} of {len(state)}", gone[0], ", ...")
    kept = {name: held for name, held in state.items() if name != "dec_blocks2.4.norm_y.bias"}
    refused(written(tmp_path, kept), "lacks 1 of", "dec_blocks2.4.norm_y.bias")


def test_a_missing_block_is_not_a_shallower_network(tmp_path, state):
    kept = {name: held for name, held in state.items() if not name.startswith("enc_blocks.1.")}
    refused(written(tmp_path, kept), "lacks", "enc_blocks.1.")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("enc_blocks.2.mlp.fc1.weight", (128, 64)),
        ("decoder_embed.weight", (64, 32)),
        ("patch_embed.proj.weight", (64, 3, 14, 14)),
        ("downstream_head2.dpt.head.4.weight", (5, 16, 1, 1)),
    ],
)
def test_shapes_that_do_not_fit(tmp_path, state, name, shape):
    refused(written(tmp_path, state | {name: torch.zeros(shape)}), "do not fit", "instead of")


def test_a_tensor_without_axes(tmp_path, state):
    path = written(tmp_path, state | {"decoder_embed.weight": torch.tensor(1.0)})
    refused(path, "decoder_embed.weight has shape ()")


def test_windows_of_two_lengths(tmp_path, temporal_state):
    name = next(name for name in temporal_state if "head2" in name and name.endswith(".pe"))
    longer = torch.zeros(1, 12, temporal_state[name].shape[2])
    refused(written(tmp_path, temporal_state | {name: longer}), name, "(1, 12", "(1, 6")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite(tmp_path, state, value):
    damaged = state["dec_blocks.3.attn.proj.weight"].clone()
    damaged[5, 7] = value
    path = written(tmp_path, state | {"dec_blocks.3.attn.proj.weight": damaged})
    refused(path, "dec_blocks.3.attn.proj.weight", "not finite")


@pytest.mark.parametrize("held", [torch.ones(64, dtype=torch.int64), torch.ones(64).to_sparse()])
def test_tensors_of_other_kinds(tmp_path, state, held):
    refused(
        written(tmp_path, state | {"enc_norm.weight": held}), "enc_norm.weight", "plain floats"
    )


def test_numbers_of_heads(tmp_path, state):
    path = written(tmp_path, state)
    for heads, words in (((3, 4), "encoder_heads is 3"), ((4, 32), "decoder_heads is 32")):
        with pytest.raises(ModelError, match=words):
            PomatoNet.from_file(path, *heads)
    with pytest.raises(ModelError, match="encoder_heads is 0"):
        PomatoNet.from_file(path, 0, 4)
    net = PomatoNet.from_file(path)
    assert (net.sizes.encoder_heads, net.sizes.decoder_heads) == (1, 1)


def test_widths_that_do_not_tell_the_heads(tmp_path):
    sizes = dataclasses.replace(TINY, encoder_width=48, encoder_heads=4)
    path = written(tmp_path, rule_net(sizes).state_dict())
    with pytest.raises(ModelError, match="encoder_heads is not given and 48 channels"):
        PomatoNet.from_file(path)


def test_widths_that_motion_modules_cannot_have():
    with pytest.raises(ModelError, match="feature_width is 40"):
        PomatoNet(dataclasses.replace(TINY, feature_width=40, temporal_length=4))
    with pytest.raises(ModelError, match="at least 2"):
        PomatoNet(dataclasses.replace(TINY, decoder_depth=1))
