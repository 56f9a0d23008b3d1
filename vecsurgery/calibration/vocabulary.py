"""Vocabularies: compared by the string of each row, because equal ids may mean different tokens."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vecsurgery.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class VocabularyMatch:
    """Which rows of `into`'s embedding may take a delta.

    `mask`: (rows of into,) boolean, True where all three checkpoints have the row and give it the same string.
    `differing`: (id, string in into, in tuned, in base) of the other rows; None where there is no token or no row.
    """

    mask: "Tensor"
    differing: tuple[tuple[int, str | None, str | None, str | None], ...]

    @property
    def agrees(self) -> bool:
        """Whether every row may take a delta."""
        return not self.differing


def vocabulary_rows(tokenizer: "PreTrainedTokenizerFast", rows: int, *, folder: Path | None = None) -> list[str | None]:
    """The token string of each of the first `rows` ids; None for a row without a token (padding of the embedding).

    `folder`: where the tokenizer's files lie. If there is a tokenizer.json, its tokens count: some classes of
    transformers add one of their own (Qwen 2's an unknown token to a tokenizer that has none), which no row was
    trained for.
    """
    strings: list[str | None] = [None] * rows
    for token, index in _vocabulary(tokenizer, folder).items():
        if 0 <= index < rows:
            strings[index] = token
    return strings


def compare_vocabularies(
    into: Sequence[str | None], tuned: Sequence[str | None], base: Sequence[str | None]
) -> VocabularyMatch:
    """Which rows of `into` mean the same token in `tuned` and `base`; each argument is a `vocabulary_rows` list.

    A row that the pair lacks never agrees. A row without a token in all three agrees: no text reaches it.
    """
    import torch

    shared = min(len(tuned), len(base))
    same = [index < shared and string == tuned[index] == base[index] for index, string in enumerate(into)]
    differing = [
        (index, string, _at(tuned, index), _at(base, index)) for index, string in enumerate(into) if not same[index]
    ]
    return VocabularyMatch(torch.tensor(same, dtype=torch.bool), tuple(differing))


def _vocabulary(tokenizer: "PreTrainedTokenizerFast", folder: Path | None) -> Mapping[str, int]:
    """Token string → id: of the folder's tokenizer.json, or else of the loaded tokenizer."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json" if folder is not None else None
    stored = path is not None and path.is_file()
    vocabulary: dict[str, int] = Tokenizer.from_file(str(path)).get_vocab() if stored else tokenizer.get_vocab()
    return vocabulary


def _at(strings: Sequence[str | None], index: int) -> str | None:
    return strings[index] if index < len(strings) else None


def end_tokens(folder: Path, tokenizer: "PreTrainedTokenizerFast") -> frozenset[str]:
    """Strings of the tokens that end a text: of the tokenizer, config.json and generation_config.json."""
    found = {tokenizer.eos_token} if tokenizer.eos_token is not None else set()
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")
        except (ValueError, AttributeError) as error:
            raise InputError(f"reading {path}: not a JSON object ({error})") from error
        for index in ids if isinstance(ids, list) else [ids]:
            token = tokenizer.convert_ids_to_tokens(index) if isinstance(index, int) else None
            found |= {token} if token is not None else set()
    return frozenset(found)


def compare_end_tokens(into: frozenset[str], tuned: frozenset[str], name: str) -> tuple[str, ...]:
    """A warning for the end tokens of the tuned model of delta `name` that do not end a text in `into`."""
    lacking = sorted(tuned - into)
    if not lacking:
        return ()
    which = "which is no end token" if len(lacking) == 1 else "which are no end tokens"
    return (
        f"deltas.{name}: its tuned model ends texts with {' and '.join(map(repr, lacking))}, {which} of `into`: "
        "the edited model may run on where the tuned one stops",
    )
