"""References become folders: local ones as they are, hub ids from the cache with the network off."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import architectures
import huggingface_hub
import pytest
import torch

from vecsurgery.checkpoint import Stored, plan_download, resolve, revision_of
from vecsurgery.errors import InputError
from vecsurgery.recipe.types import Reference

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _hub(text: str, revision: str | None = None) -> Reference:
    return Reference(text, None, text, revision)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds `org/model` as downloads leave it: blobs, refs, and snapshots of symbolic links."""
    architectures.build("llama").save_pretrained(tmp_path / "plain")
    repository = tmp_path / "hub" / "models--org--model"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted((tmp_path / "plain").iterdir())):
        blob = repository / "blobs" / f"blob{number}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_a_cached_hub_id_resolves_and_reads_with_the_network_off(cache: Path, revision: str | None) -> None:
    folder = resolve(_hub("org/model", revision))
    assert folder == cache / "models--org--model" / "snapshots" / COMMIT
    assert revision_of(folder) == COMMIT
    plain = Stored(cache.parent / "plain")
    stored = Stored(folder)
    assert stored.fingerprint == plain.fingerprint
    assert all(torch.equal(stored.read(name), plain.read(name)) for name in plain.headers)


def test_the_offline_variable_of_a_fresh_process_is_enough(cache: Path) -> None:
    script = (
        "from vecsurgery.checkpoint.reference import resolve\n"
        "from vecsurgery.recipe.types import Reference\n"
        "print(resolve(Reference('org/model', None, 'org/model')))\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(COMMIT)


@pytest.mark.usefixtures("cache")
def test_what_is_not_cached_is_named_all_at_once_before_anything_is_fetched() -> None:
    references = [_hub("org/absent"), _hub("org/model"), _hub("org/model", "v9")]
    with pytest.raises(InputError) as caught:
        plan_download(references)
    head, *lines = str(caught.value).splitlines()
    assert head == "2 models cannot be opened:"
    assert len(lines) == 2
    assert lines[0].startswith("  fetching 'org/absent' from the hub: ")
    assert all("HF_HUB_OFFLINE" in line and "not completely, in the cache" in line for line in lines)
    assert all("There is no folder of this name" in line for line in lines)
    with pytest.raises(InputError, match=r"^fetching 'org/absent'"):
        plan_download(references[:2])
    assert plan_download([_hub("org/model")]) == 0


def test_a_hub_that_does_not_answer_is_no_fault_where_the_model_is_cached(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = huggingface_hub.snapshot_download

    def unreachable(repository: str, *, dry_run: bool = False, **options: Any) -> str:
        if dry_run:
            raise huggingface_hub.errors.DryRunError("the repository cannot be accessed")
        return cached(repository, **{**options, "cache_dir": cache, "local_files_only": True})

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    assert plan_download([_hub("org/model")], offline=False) == 0
    with pytest.raises(InputError, match=r"'org/absent' from the hub: the hub cannot be reached, and it is not"):
        plan_download([_hub("org/model"), _hub("org/absent")], offline=False)


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "a model@1+2"
    folder.mkdir()
    assert resolve(Reference("x", folder, "")) == folder
    assert revision_of(folder) is None
    with pytest.raises(InputError, match="no folder"):
        resolve(Reference("x", tmp_path / "absent", ""))


def test_a_missing_adapter_of_a_local_model_is_found_out_when_planning(tmp_path: Path) -> None:
    adapter = Reference("y", tmp_path / "absent", "")
    with pytest.raises(InputError, match="'y'"):
        plan_download([Reference("x+y", tmp_path, "", None, adapter)])


def test_planning_counts_the_bytes_that_are_not_cached_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    def listing(repository: str, **options: Any) -> list[SimpleNamespace]:
        assert options["dry_run"]
        files = {"config.json": 10}
        if "*.bin" in options["allow_patterns"]:
            files["pytorch_model.bin"] = 500
        elif repository == "org/safe":
            files["model.safetensors"] = 1000
        return [
            SimpleNamespace(filename=name, file_size=size, will_download=name != "config.json")
            for name, size in files.items()
        ]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", listing)
    safe, old = _hub("org/safe"), _hub("org/old")
    assert plan_download([safe], offline=False) == 1000
    assert plan_download([old], offline=False) == 500
    assert plan_download([safe, old, safe], offline=False) == 1500
