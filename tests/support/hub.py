"""The hub's cache as downloads leave it, and a machine without network."""

import os
import socket
from pathlib import Path

import huggingface_hub
import pytest


def cache_model(cache: Path, name: str, plain: Path, commit: str) -> Path:
    """The cache entry of `ORG/NAME` with the files of a folder: blobs, a ref, and a snapshot of symbolic links."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for folder in (snapshot, repository / "blobs", repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    for number, file in enumerate(sorted(plain.iterdir())):
        blob = repository / "blobs" / f"{number:064x}"
        os.link(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def go_offline(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Take models from this cache only; whoever opens a connection fails."""
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    monkeypatch.setattr(socket, "create_connection", _no_network)


def _no_network(*args: object) -> None:
    raise OSError("the network is switched off")
