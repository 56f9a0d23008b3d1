"""A recipe of hub ids runs from the cache with the network off, and the record names the commits."""

import shutil

import pytest
from support.hub import cache_model, go_offline
from support.results import contents, record_of
from support.workspace import Workspace

import vecsurgery

COMMITS = {"into": "0123456789abcdef0123456789abcdef01234567", "tuned": "89abcdef0123456789abcdef0123456789abcdef"}


@pytest.fixture
def offline(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace whose models lie in a hub cache only, on a machine without network."""
    shutil.copytree(workspace.root / "into", workspace.root / "plain" / "into")
    shutil.copytree(workspace.root / "tuned", workspace.root / "plain" / "tuned")
    for name in COMMITS:
        cache_model(workspace.root / "hub", f"org/{name}", workspace.root / name, COMMITS[name])
        shutil.rmtree(workspace.root / name)
    go_offline(monkeypatch, workspace.root / "hub")
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
