"""Tokens by string, not by row: which rows of the vocabulary's tensors may take a delta."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vecsurgery.calibration import (
    compare_end_tokens,
    compare_vocabularies,
    end_tokens,
    has_tokenizer,
    vocabulary_rows,
)
from vecsurgery.checkpoint.types import Weights
from vecsurgery.errors import InputError
from vecsurgery.planning.tokenizers import Tokenizers

if TYPE_CHECKING:
    from torch import Tensor

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_LISTED = 8


@dataclass(frozen=True)
class Alignment:
    """How the vocabulary of one delta's pair stands to that of `into`.

    `masks`: parameter → rows of `into` that may take a delta (absent where all may).
    `differing`: (id, string in into, in tuned, in base) of the others.
    """

    masks: dict[str, "Tensor"] = field(default_factory=dict)
    differing: tuple[tuple[int, str | None, str | None, str | None], ...] = ()
    warnings: tuple[str, ...] = ()


def align(name: str, into: Weights, tuned: Weights, base: Weights, tokenizers: Tokenizers | None = None) -> Alignment:
    """Compare the token strings of the pair of delta `name` with those of `into`, row by row.

    `tokenizers`: those that are loaded already.
    """
    tokenizers = tokenizers or Tokenizers()
    folders = [_folder(weights) for weights in (into, tuned, base)]
    without = [label for label, folder in zip(("into", "tuned", "base"), folders, strict=True) if folder is None]
    rows = [_rows(weights) for weights in (into, tuned, base)]
    if without:
        return Alignment(
            warnings=(
                f"deltas.{name}: {' and '.join(without)} {'has' if len(without) == 1 else 'have'} no tokenizer in the "
                "folder, so tokens cannot be compared by string; rows of equal number are taken to be equal tokens",
            )
        )
    known = [folder for folder in folders if folder is not None]
    ends = compare_end_tokens(
        end_tokens(known[0], tokenizers[known[0]]), end_tokens(known[1], tokenizers[known[1]]), name
    )
    if len(set(rows)) == 1 and _same_files(known):
        return Alignment(warnings=ends)
    strings = [
        vocabulary_rows(tokenizers[folder], count, folder=folder) for folder, count in zip(known, rows, strict=True)
    ]
    match = compare_vocabularies(*strings)
    ends = (*ends, *_without_row(name, strings[1][rows[0] :]))
    if match.agrees:
        return Alignment(warnings=ends)
    masks = {info.parameter: match.mask for info in into.layout.tensors.values() if info.kind in ("embedding", "head")}
    return Alignment(masks, match.differing, (*ends, _listing(name, match.differing)))


def check_same_tokens(what: str, into: Weights, other: Weights, ids: Collection[int], tokenizers: Tokenizers) -> None:
    """Refuse a model that would read other tokens than `into` in the same ids.

    A model without a tokenizer in its folder is taken at its word. Errors: InputError naming the first such id.
    """
    folders = [_folder(weights) for weights in (into, other)]
    known = [folder for folder in folders if folder is not None]
    if len(known) < 2 or _same_files(known):
        return
    rows = max(ids) + 1
    ours, theirs = (vocabulary_rows(tokenizers[folder], rows, folder=folder) for folder in known)
    for index in sorted(ids):
        if ours[index] != theirs[index]:
            raise InputError(
                f"{what}: id {index} of the rows is {ours[index]!r} in `into` and {theirs[index]!r} in that model; "
                "losses can be compared only between models that read the same tokens"
            )


def _folder(weights: Weights) -> Path | None:
    folder: Path | None = getattr(weights, "folder", None)
    return folder if folder is not None and has_tokenizer(folder) else None


def _rows(weights: Weights) -> int:
    """Rows of the input embedding."""
    return max((info.shape[0] for info in weights.layout.tensors.values() if info.kind == "embedding"), default=0)


def _same_files(folders: Sequence[Path]) -> bool:
    """True where the tokenizers are byte for byte the same, which spares the comparison of every string."""
    first = _contents(folders[0])
    return all(folder == folders[0] or _contents(folder) == first for folder in folders[1:])


def _contents(folder: Path) -> dict[str, bytes]:
    names = (*_TOKENIZER_FILES, "tokenizer_config.json", "added_tokens.json", "merges.txt")
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def _without_row(name: str, strings: Sequence[str | None]) -> tuple[str, ...]:
    """A warning about tokens of the tuned model behind the last row of `into`: what it learnt of them is lost."""
    known = [string for string in strings if string is not None]
    if not known:
        return ()
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return (
        f"deltas.{name}: `into` has no row for {len(known)} tokens of the tuned model "
        f"({', '.join(map(repr, known[:_LISTED]))}{more}); what it learnt about them is left out",
    )


def _listing(name: str, differing: Sequence[tuple[int, str | None, str | None, str | None]]) -> str:
    """The rows without delta: those with a token one by one, padding without any token as runs of rows."""
    named = [entry for entry in differing if any(string is not None for string in entry[1:])]
    padding = [row for row, *strings in differing if not any(string is not None for string in strings)]
    parts = [f"{row}: into {a!r}, tuned {b!r}, base {c!r}" for row, a, b, c in named[:_LISTED]]
    parts += [f"and {len(named) - _LISTED} more"] if len(named) > _LISTED else []
    parts += [f"{run}: no token, and no row in the pair" for run in _runs(padding)]
    return (
        f"deltas.{name}: {len(differing)} vocabulary rows of `into` mean another token in the pair, or are missing "
        f"there; they get no delta ({'; '.join(parts)})"
    )


def _runs(rows: Sequence[int]) -> list[str]:
    """Ascending rows as runs: [3, 4, 5, 9] → ["3-5", "9"]."""
    starts = [index for index, row in enumerate(rows) if index == 0 or rows[index - 1] != row - 1]
    ends = [*(start - 1 for start in starts[1:]), len(rows) - 1]
    return [
        f"{rows[start]}-{rows[end]}" if end > start else f"{rows[start]}"
        for start, end in zip(starts, ends, strict=False)
    ]
