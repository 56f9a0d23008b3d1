"""Model references: existing paths are literal, everything else is a hub id with a revision and an adapter."""

from dataclasses import replace
from pathlib import Path

import pytest

from vecsurgery.recipe import Reference, parse_reference
from vecsurgery.recipe.references import canonical


@pytest.mark.parametrize("name", ["plain", "with+plus", "with@at", "a b", "org+x@y/model"])
def test_an_existing_path_is_taken_literally(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir(parents=True)
    for text in (name, f"./{name}", str(tmp_path / name)):
        reference = parse_reference(text, tmp_path)
        assert reference.path == tmp_path / name
        assert (reference.revision, reference.adapter, reference.text) == (None, None, text)


@pytest.mark.parametrize(
    ("text", "model", "revision"),
    [("gpt2", "gpt2", None), ("org/name", "org/name", None), ("org/na.me-1@v1.0", "org/na.me-1", "v1.0")],
)
def test_a_hub_id_may_have_a_revision(tmp_path: Path, text: str, model: str, revision: str | None) -> None:
    assert parse_reference(text, tmp_path) == Reference(text, None, model, revision)


def test_the_place_in_a_recipe_is_for_messages_alone(tmp_path: Path) -> None:
    plain = parse_reference("org/name", tmp_path)
    placed = replace(plain, place="elsewhere.yaml:3: into", folder=tmp_path / "other")
    assert placed == plain
    assert repr(placed) == repr(plain)  # fingerprints are made of it


def test_an_adapter_follows_a_plus_with_its_own_revision(tmp_path: Path) -> None:
    reference = parse_reference("org/base@main+other/lora@refs/pr/1", tmp_path)
    assert (reference.model, reference.revision) == ("org/base", "main")
    assert reference.adapter is not None
    assert (reference.adapter.model, reference.adapter.revision) == ("other/lora", "refs/pr/1")


def test_local_models_and_adapters_mix_with_hub_ids(tmp_path: Path) -> None:
    (tmp_path / "my+base").mkdir()
    (tmp_path / "my+lora@2").mkdir()
    reference = parse_reference("my+base+my+lora@2", tmp_path)
    assert reference.path == tmp_path / "my+base"
    assert reference.adapter is not None
    assert reference.adapter.path == tmp_path / "my+lora@2"
    assert parse_reference("org/base+my+lora@2", tmp_path).adapter == reference.adapter
    assert parse_reference("my+base+org/lora@x", tmp_path).adapter == Reference("org/lora@x", None, "org/lora", "x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty text"),
        ("./gone", "there is no folder"),
        ("../gone", "there is no folder"),
        ("/gone/model", "there is no folder /gone/model"),
        ("~/surely/gone", "there is no folder"),
        ("a/b/c", "neither an existing folder"),
        ("org/na me", "neither an existing folder"),
        ("org/a--b", "neither an existing folder"),
        ("C:\\models", "neither an existing folder"),
        ("org/name@", "no revision"),
        ("+lora", "neither an existing folder"),
        ("org/name+", "empty text"),
        ("org/name+a+b", "more than one adapter"),
        ("here+a+b", "more than one adapter"),
        ("here@main", "is a local folder and has no revisions"),
        ("./here@main", "is a local folder and has no revisions"),
        ("file.bin", "is a file; expected the folder of a checkpoint"),
    ],
)
def test_other_references_are_refused_with_the_reason(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "file.bin").touch()
    with pytest.raises(ValueError, match=says):
        parse_reference(text, tmp_path)


def test_the_canonical_text_names_the_same_model_from_anywhere(tmp_path: Path) -> None:
    for name in ("my+base", "lora@2"):
        (tmp_path / name).mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for text in ("my+base", "my+base+lora@2", "./my+base+org/lora@x", "org/base@v1+lora@2", "elsewhere/../my+base"):
        reference = parse_reference(text, tmp_path)
        again = parse_reference(canonical(reference), elsewhere)
        assert canonical(again) == canonical(reference)
        assert (again.path, again.model, again.revision) == (reference.path, reference.model, reference.revision)
        assert ".." not in canonical(reference)
