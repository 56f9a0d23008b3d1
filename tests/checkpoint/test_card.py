"""The model card: sources, licence, recipe; no network."""

from pathlib import Path

import pytest
import yaml

from vecsurgery.checkpoint.card import Card, CardSource, licence_of, model_card


def source(folder: Path, name: str, readme: str | None = None, hub_id: str | None = None) -> CardSource:
    (folder / name).mkdir()
    if readme is not None:
        (folder / name / "README.md").write_text(readme)
    return CardSource(name, folder / name, hub_id)


def front_matter(card: Card) -> dict[str, object]:
    metadata: dict[str, object] = yaml.safe_load(card.text.split("---\n")[1])
    return metadata


def test_sources_that_agree_give_their_licence(tmp_path: Path) -> None:
    sources = [
        source(tmp_path, "into", "---\nlicense: MIT\n---\ntext", "org/into"),
        source(tmp_path, "tuned", "---\nlicense: mit\n---\n", "org/tuned"),
    ]
    card = model_card("Cleaned", sources, "into: org/into\n", "Removed much.")
    assert card.notes == ()
    assert front_matter(card) == {
        "license": "mit",
        "library_name": "transformers",
        "base_model": ["org/into", "org/tuned"],
        "base_model_relation": "merge",
        "tags": ["vecsurgery", "merge", "task-arithmetic"],
    }
    assert "# Cleaned" in card.text
    assert "Removed much." in card.text
    assert "```yaml\ninto: org/into\n```" in card.text


@pytest.mark.parametrize("other", [None, "---\nlicense: apache-2.0\n---\n", "no front matter", "---\n- a: [\n---\n"])
def test_a_licence_that_differs_or_is_unknown_gives_other_with_a_note(other: str | None, tmp_path: Path) -> None:
    sources = [source(tmp_path, "into", "---\nlicense: mit\n---\n"), source(tmp_path, "tuned", other)]
    card = model_card("x", sources, "into: a")
    assert front_matter(card)["license"] == "other"
    (note,) = card.notes
    assert "into: mit" in note
    assert "tuned: " in note


def test_local_folders_do_not_stand_in_the_base_models(tmp_path: Path) -> None:
    card = model_card("x", [source(tmp_path, "into")], "into: a")
    assert "base_model" not in front_matter(card)
    assert "base_model_relation" not in front_matter(card)


def test_a_recipe_with_a_fence_stays_inside_its_block(tmp_path: Path) -> None:
    card = model_card("x", [source(tmp_path, "into")], "into: a # ```\n")
    assert "````yaml\ninto: a # ```\n````" in card.text


def test_a_folder_without_a_card_has_no_licence(tmp_path: Path) -> None:
    assert licence_of(tmp_path) is None
