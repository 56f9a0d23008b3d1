"""The model card (README.md) of an output: where it comes from, how it was made, under which licence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_TAGS = ("vecsurgery", "merge", "task-arithmetic")


@dataclass(frozen=True)
class CardSource:
    """A model that went into the output.

    `name`: as the recipe gives it. `folder`: where its README lies. `hub_id`: None for a local folder; only hub ids can
    stand in the card's `base_model`.
    """

    name: str
    folder: Path
    hub_id: str | None = None


@dataclass(frozen=True)
class Card:
    """The card's text, and what is to be settled before it is published."""

    text: str
    notes: tuple[str, ...]


Form = Literal["checkpoint", "delta", "adapter", "patched"]
_HOLDS: Mapping[Form, str] = {
    "checkpoint": "Tokenizer, chat template and generation settings are copies of the first one's.",
    "patched": "Tokenizer, chat template and generation settings are copies of the first one's.",
    "delta": "It holds the change alone: `vecsurgery apply` adds it to the first one.",
    "adapter": "It is a LoRA adapter of the first one, for PEFT.",
}


def model_card(
    title: str, sources: Sequence[CardSource], recipe: str, summary: str = "", form: Form = "checkpoint"
) -> Card:
    """Compose the card, without network.

    `sources`: `into` first. `recipe`: its text, shown in a code block. `summary`: a sentence on what happened. `form`:
    what the folder holds.
    The licence is that of the sources where all state the same one, else `other`, with a note.
    """
    from huggingface_hub import ModelCard, ModelCardData

    licence, notes = _licence(sources)
    named = sources[:1] if form == "adapter" else sources
    hub_ids = list(dict.fromkeys(source.hub_id for source in named if source.hub_id))
    relation = "adapter" if form == "adapter" else "merge"
    extra: dict[str, Any] = {"base_model_relation": relation} if hub_ids and form != "delta" else {}
    library = {"delta": None, "adapter": "peft"}.get(form, "transformers")
    data = ModelCardData(license=licence, library_name=library, base_model=hub_ids or None, tags=list(_TAGS), **extra)
    body = _body(title, sources, recipe, summary, form)
    return Card(str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}")), notes)


def licence_of(folder: Path) -> str | None:
    """The licence that a folder's README states in its front matter; None where it states none or cannot be read."""
    import yaml
    from huggingface_hub.repocard import metadata_load

    readme = next((folder / name for name in ("README.md", "readme.md") if (folder / name).is_file()), None)
    if readme is None:
        return None
    try:
        metadata = metadata_load(readme)
    except (ValueError, yaml.YAMLError):
        # A foreign card that is no valid card states no licence; the card notes that it is unknown.
        return None
    licence = metadata.get("license") if metadata else None
    return licence.strip().lower() if isinstance(licence, str) and licence.strip() else None


def _licence(sources: Sequence[CardSource]) -> tuple[str, tuple[str, ...]]:
    found = {source.name: licence_of(source.folder) for source in sources}
    known = {licence for licence in found.values() if licence}
    unknown = [name for name, licence in found.items() if licence is None]
    if len(known) == 1 and not unknown:
        return known.pop(), ()
    stated = "; ".join(f"{name}: {licence or 'unknown'}" for name, licence in found.items())
    return "other", (
        f"the licences of the sources {'differ' if len(known) > 1 else 'are not all known'} ({stated}); "
        "the model card says `license: other`: settle it before you publish the model",
    )


def _body(title: str, sources: Sequence[CardSource], recipe: str, summary: str, form: Form) -> str:
    recipe = recipe.rstrip("\n")
    fence = "```"
    while fence in recipe:
        fence += "`"
    lines = [f"# {title}", ""]
    if summary:
        lines += [summary, ""]
    lines += [
        f"Made with [vecsurgery](https://pypi.org/project/vecsurgery/) from `{sources[0].name}`"
        + (" and " + ", ".join(f"`{source.name}`" for source in sources[1:]) if sources[1:] else "")
        + f". {_HOLDS[form]}",
        "",
        f"{fence}yaml",
        recipe,
        fence,
    ]
    if form != "patched":
        lines += ["", "`surgery.json` holds the figures of every matrix and the hashes of all inputs and outputs."]
    return "\n".join(lines) + "\n"
