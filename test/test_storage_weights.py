"""The manifest of weights, their folder and their checksums."""

import hashlib
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import errors

import recon4d_ros
from recon4d_ros.errors import MissingPrerequisiteError, ModelError, OutputError, SourceError
from recon4d_ros.installation import package_file
from recon4d_ros.storage.weights import (
    fetch,
    find_weights,
    hub_download,
    read_manifest,
    record_path,
    verify,
    weights_folder,
)

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def entry():
    return read_manifest()[0]


def publisher(content=CONTENT):
    """A download, and what it was asked for."""
    asked = []

    def download(repository, file, folder):
        asked.append((repository, file))
        (folder / file).write_bytes(content)

    return download, asked


def test_the_manifest_names_the_published_checkpoints():
    entries = read_manifest()
    files = ["POMATO_pairwise.pth", "POMATO_temp_6frames.pth", "POMATO_temp_12frames.pth"]
    assert [entry.file for entry in entries] == files
    assert {entry.repository for entry in entries} == {"wyddmw/POMATO"}
    assert {entry.licence for entry in entries} == {"CC BY-NC-SA 4.0"}
    for entry in entries:
        assert find_weights(entry.name, entries) is find_weights(entry.file, entries) is entry
    with pytest.raises(ModelError, match=r"called 'x'; expected one of pomato_pairwise, "):
        find_weights("x", entries)


@pytest.mark.parametrize("share", ["share/recon4d_ros/models", "lib/site-packages/models"])
def test_the_manifest_is_found_where_the_package_is_installed(tmp_path, monkeypatch, share):
    package = tmp_path / "lib" / "site-packages" / "recon4d_ros" / "__init__.py"
    monkeypatch.setattr(recon4d_ros, "__file__", str(package))
    with pytest.raises(MissingPrerequisiteError, match="install the package again"):
        package_file("models/manifest.yaml")
    (tmp_path / share).mkdir(parents=True)
    (tmp_path / share / "manifest.yaml").write_text("models: []")
    assert package_file("models/manifest.yaml") == tmp_path / share / "manifest.yaml"
    assert read_manifest() == ()


@pytest.mark.parametrize(
    "text",
    [
        "models: [",
        "[]",
        "other: 1",
        "models: [a]",
        "models: [{name: a}]",
        yaml.safe_dump({"models": [vars(read_manifest()[0]) | {"file": "../a.pth"}]}),
        yaml.safe_dump({"models": [vars(read_manifest()[0]) | {"licence": None}]}),
    ],
)
def test_other_manifests_are_refused(tmp_path, text):
    path = tmp_path / "manifest.yaml"
    path.write_text(text)
    with pytest.raises(SourceError, match=r"cannot read .*manifest\.yaml"):
        read_manifest(path)
    with pytest.raises(SourceError, match="absent"):
        read_manifest(tmp_path / "absent")


def test_where_weights_are_kept(monkeypatch):
    monkeypatch.delenv("RECON4D_MODELS", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert weights_folder() == Path.home() / ".cache" / "recon4d_ros" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert weights_folder() == Path("/cache/recon4d_ros/models")
    monkeypatch.setenv("RECON4D_MODELS", "~/models")
    assert weights_folder() == Path.home() / "models"


def test_the_checksum_is_recorded_once_and_checked_ever_after(tmp_path, entry):
    download, asked = publisher()
    folder = tmp_path / "new" / "folder"
    path = fetch(entry, folder, download)
    assert path.read_bytes() == CONTENT
    assert asked == [("wyddmw/POMATO", "POMATO_pairwise.pth")]
    assert record_path(entry, folder).read_text() == f"{SHA256}  POMATO_pairwise.pth\n"
    assert fetch(entry, folder, download) == path
    assert len(asked) == 1
    assert verify(entry, folder) == SHA256

    path.write_bytes(CONTENT[:-1])
    for act in (lambda: verify(entry, folder), lambda: fetch(entry, folder, download)):
        with pytest.raises(ModelError, match=f"expected {SHA256}: it is damaged"):
            act()
    path.unlink()
    with pytest.raises(ModelError, match="is not there; run `recon4d models fetch pomato_pair"):
        verify(entry, folder)
    another, _ = publisher(b"another")
    with pytest.raises(ModelError, match="it is damaged or another file"):
        fetch(entry, folder, another)


def test_a_checksum_of_the_manifest_comes_first(tmp_path, entry):
    download, _ = publisher()
    assert fetch(replace(entry, sha256=SHA256), tmp_path, download).is_file()
    assert not record_path(entry, tmp_path).exists()
    with pytest.raises(ModelError, match=f"expected {'0' * 64}"):
        verify(replace(entry, sha256="0" * 64), tmp_path)


def test_a_record_that_is_none(tmp_path, entry):
    (tmp_path / entry.file).write_bytes(CONTENT)
    record_path(entry, tmp_path).write_text("hello")
    with pytest.raises(ModelError, match="holds no SHA-256"):
        verify(entry, tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path, entry):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="RECON4D_MODELS"):
        fetch(entry, tmp_path / "file" / "x", publisher()[0])


def test_the_hub_is_asked_for_one_file(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *words, **more: asked.append((words, more))
    )
    hub_download("owner/name", "file.pth", tmp_path)
    assert asked == [(("owner/name", "file.pth"), {"local_dir": tmp_path})]


@pytest.mark.parametrize(
    "error",
    [
        errors.LocalEntryNotFoundError("no network\nmore"),
        errors.OfflineModeIsEnabled("offline"),
        errors.HTTPError("timed out"),
        OSError("disk full"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_the_hub_says_is_one_error(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ModelError) as caught:
        hub_download("owner/name", "file.pth", tmp_path)
    first = str(error).partition("\n")[0]
    assert f"file.pth from huggingface.co/owner/name ({first}); check" in str(caught.value)
