"""`recon4d models`: what it prints, and one line per error."""

import pytest
import torch
from command_line import error_line, recon4d
from pomato_fixtures import TINY, rule_net
from safetensors import safe_open

from recon4d_ros.cli import models
from recon4d_ros.errors import ModelError
from recon4d_ros.networks.pomato import PomatoNet

NAME, FILE = "pomato_pairwise", "POMATO_pairwise.pth"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder for weights and a publisher that has them all."""

    def download(_, file, folder):
        (folder / file).write_bytes(b"weights of " + file.encode())

    monkeypatch.setenv("RECON4D_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(models, "hub_download", download)
    return tmp_path / "models"


def test_nothing_is_fetched_before_the_licence_is_accepted(folder, capsys):
    assert recon4d("models", "fetch", NAME) == 2
    printed = capsys.readouterr()
    assert "licence: CC BY-NC-SA 4.0" in printed.out
    assert "repeat the command with --accept-licence" in printed.err
    assert not folder.exists()


def test_fetch_list_verify(folder, capsys):
    assert recon4d("models", "fetch", NAME, "--accept-licence") == 0
    out = capsys.readouterr().out
    assert "CC BY-NC-SA 4.0" in out
    assert out.splitlines()[-1] == str(folder / FILE)
    assert recon4d("models", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == [
        NAME,
        "pomato_temporal_6",
        "pomato_temporal_12",
    ]
    assert ["not fetched" in line for line in lines[:3]] == [False, True, True]
    assert lines[3] == f"folder: {folder}"
    assert recon4d("models", "verify") == 0
    assert capsys.readouterr().out.split()[:2] == [NAME, "ok"]


def test_verify_records_what_came_by_other_ways(folder, capsys):
    assert recon4d("models", "verify") == 0
    assert "there are no weights" in capsys.readouterr().out
    folder.mkdir()
    (folder / FILE).write_bytes(b"weights")
    for state in ("recorded", "ok"):
        assert recon4d("models", "verify", FILE) == 0
        assert capsys.readouterr().out.split()[:2] == [NAME, state]
    (folder / FILE).write_bytes(b"Weights")
    assert recon4d("models", "verify") == 2
    assert "it is damaged or another file" in error_line(capsys)
    assert recon4d("models", "verify", "pomato_temporal_6") == 2
    assert "is not there" in error_line(capsys)


def test_errors_are_one_line(folder, monkeypatch, capsys):
    assert recon4d("models", "fetch", "nothing", "--accept-licence") == 2
    assert "'nothing'" in error_line(capsys)

    def offline(*_):
        raise ModelError("cannot download")

    monkeypatch.setattr(models, "hub_download", offline)
    assert recon4d("models", "fetch", NAME, "--accept-licence") == 2
    assert error_line(capsys) == "recon4d: cannot download"
    with pytest.raises(SystemExit) as stop:
        recon4d("models")
    assert stop.value.code == 2


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_convert(tmp_path, capsys, dtype):
    net = rule_net(TINY)
    source, target = tmp_path / "net.pth", tmp_path / "net.safetensors"
    torch.save({"model": net.state_dict()}, source)
    words = ("--dtype", dtype, "--encoder-heads", 4, "--decoder-heads", 4)
    assert recon4d("models", "convert", source, target, *words) == 0
    assert f"a pairwise model, {dtype}, " in capsys.readouterr().out
    with safe_open(target, framework="pt") as file:
        held = file.get_tensor("enc_norm.weight")
    assert held.dtype == models.DTYPES[dtype]
    again = PomatoNet.from_file(target)
    assert again.sizes == TINY
    torch.testing.assert_close(again.enc_norm.weight, held.float(), rtol=0, atol=0)


def test_convert_refuses(tmp_path, capsys):
    (tmp_path / "a.pth").write_text("no checkpoint")
    assert recon4d("models", "convert", tmp_path / "a.pth", tmp_path / "b.safetensors") == 2
    assert "a.pth: is damaged" in error_line(capsys)
