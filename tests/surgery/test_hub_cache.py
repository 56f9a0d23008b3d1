"""A recipe of hub ids runs from the cache with the network off, and the record names the commits."""

import os
import shutil
import socket
from pathlib import Path

import huggingface_hub
import pytest
from support.results import contents, record_of
from support.workspace import Workspace

import vecsurgery

COMMITS = {"into": "0123456789abcdef0123456789abcdef01234567", "tuned": "89abcdef0123456789abcdef0123456789abcdef"}


def _cached(cache: Path, plain: Path) -> None:
    """The cache entry of `org/NAME` as a download leaves it: blobs, a ref, and a snapshot of symbolic links."""
    repository = cache / f"models--org--{plain.name}"
    snapshot = repository / "snapshots" / COMMITS[plain.name]
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMITS[plain.name])
    for number, file in enumerate(sorted(plain.iterdir())):
        blob = repository / "blobs" / f"{number:064x}"
        shutil.move(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))


def _no_network(*args: object) -> None:
    raise OSError("the network is switched off")


@pytest.fixture
def offline(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace whose models lie in a hub cache only, on a machine without network."""
    shutil.copytree(workspace.root / "into", workspace.root / "plain" / "into")
    shutil.copytree(workspace.root / "tuned", workspace.root / "plain" / "tuned")
    for name in COMMITS:
        _cached(workspace.root / "hub", workspace.root / name)
        (workspace.root / name).rmdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(workspace.root / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(workspace.root / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    monkeypatch.setattr(socket, "create_connection", _no_network)
    return workspace


def test_a_recipe_of_hub_ids_runs_from_the_cache_and_records_the_revisions(offline: Workspace) -> None:
    offline.recipe["into"] = f"org/into@{COMMITS['into']}"
    offline.recipe["deltas"] = {"change": {"tuned": "org/tuned@main"}}
    vecsurgery.run(offline.write(), offline.out)
    record = record_of(offline.out)
    assert record["into"]["reference"] == f"org/into@{COMMITS['into']}"
    assert record["into"]["revision"] == COMMITS["into"]
    assert record["deltas"]["change"]["tuned"]["revision"] == COMMITS["tuned"]
    assert record["deltas"]["change"]["base"]["revision"] == COMMITS["into"]
    assert "org/into" in (offline.out / "README.md").read_text()
    assert not any(path.is_symlink() for path in offline.out.rglob("*"))


def test_weights_from_the_cache_equal_those_from_a_folder(offline: Workspace) -> None:
    offline.recipe |= {"into": "org/into", "deltas": {"change": {"tuned": "org/tuned"}}}
    vecsurgery.run(offline.write(), offline.out)
    offline.recipe |= {"into": "plain/into", "deltas": {"change": {"tuned": "plain/tuned"}}}
    vecsurgery.run(offline.write(), offline.root / "from-folder")
    cached, plain = contents(offline.out), contents(offline.root / "from-folder")
    assert cached["model.safetensors"] == plain["model.safetensors"]
    assert cached["tokenizer.json"] == plain["tokenizer.json"]
    assert set(cached) == set(plain)
