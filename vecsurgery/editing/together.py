"""Small tensors together: what is done to every entry alone is done to a run of tensors at once, laid end to end.

The bits are those of one tensor after the other; what is saved is the time that every operation takes to begin.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from math import prod

import torch
from torch import Tensor

from vecsurgery.checkpoint.types import Layout, TensorInfo, Weights
from vecsurgery.delta import DeltaSource, Difference, WithAdapter
from vecsurgery.delta.reading import has_vocabulary_rows, is_float, is_transposed, nbytes
from vecsurgery.editing.audit import Audited, Reader
from vecsurgery.editing.edited import Edited, TensorEdit
from vecsurgery.editing.rows import entry_by_entry

LARGEST = 1 << 16
"""Bytes of a tensor above which computing it takes longer than beginning to."""


def runs(edited: Edited, names: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """The tensors in their order: neighbours that `edit_together` may compute at once, of at most `size` bytes, every
    other one by itself.
    """
    plain = all(_is_plain(source) for source in edited.deltas.values())
    run: list[str] = []
    held, shared = 0, None
    for name in names:
        info = edited.layout.tensors[name]
        length = nbytes(info)
        found = _treatment(edited, info) if plain and length <= min(LARGEST, size) else None
        if run and (found is None or found != shared or held + length > size):
            yield tuple(run)
            run, held = [], 0
        run.append(name)
        held, shared = held + length, found
    if run:
        yield tuple(run)


def edit_together(edited: Edited, names: Sequence[str]) -> list[TensorEdit]:
    """What `edited.edit` gives for each tensor of a run. Errors: InputError, which may name another one of the run."""
    infos = [edited.layout.tensors[name] for name in names]
    readers: dict[tuple[int, tuple[str, ...]], _Joined] = {}

    def joined(weights: Weights, inside: tuple[str, ...]) -> _Joined:
        """One for all that ask for the same tensors, so that they are read once."""
        return readers.setdefault((id(weights), inside), _Joined(weights, inside, infos[0].parameter))

    into = joined(edited.into, tuple(names))
    deltas = {}
    for name, source in edited.deltas.items():
        stored = [[inside for _, inside in source.stored(info.parameter)] for info in infos]
        if all(stored):
            assert isinstance(source, Difference)  # no others are in a run
            tuned, base = zip(*stored, strict=True)
            deltas[name] = Difference(name, joined(source.tuned, tuned), joined(source.base, base), into)
    first = replace(edited, into=into, deltas=deltas, touched=edited.touches).edit(names[0])
    pieces = torch.split(first.tensor, [prod(info.shape) for info in infos])
    return [replace(first, tensor=piece.view(info.shape)) for info, piece in zip(infos, pieces, strict=True)]


def _is_plain(source: DeltaSource) -> bool:
    """Whether a delta is the difference of two checkpoints as they are stored."""
    return isinstance(source, Difference) and not any(isinstance(w, WithAdapter) for w in (source.tuned, source.base))


def _treatment(edited: Edited, info: TensorInfo) -> Hashable | None:
    """All that decides what an entry of a tensor becomes, given W and the deltas there; None where other entries do."""
    if info.layer is None or has_vocabulary_rows(info) or is_transposed(info):
        return None
    touched = edited.touches[info.name]
    if not all(entry_by_entry(touch, info, edited.multiplier) for touch in touched):
        return None
    steps = tuple(
        (id(touch.step), touch.effect, edited.multiplier(touch, info) if touch.effect in ("scale", "fit") else None)
        for touch in touched
    )
    deltas = []
    for name, source in edited.deltas.items():
        stored = [weights.layout.tensors[inside] for weights, inside in source.stored(info.parameter)]
        if not all(is_float(each) and not is_transposed(each) for each in stored):
            return None
        types = tuple(each.dtype for each in stored)
        deltas.append((types, edited.weight(name, info), edited.changes_somewhere(name, info.parameter)))
    return (info.dtype, steps, tuple(deltas))


class _Joined(Reader):
    """Weights of one tensor: some of another's, end to end. It stands where the first of them stands."""

    def __init__(self, weights: Weights, names: Sequence[str], parameter: str) -> None:
        super().__init__(weights)
        self.weights, self.names, self.parameter = weights, tuple(names), parameter

    @cached_property
    def layout(self) -> Layout:
        whole = self.weights.layout
        first = whole.tensors[self.names[0]]
        count = sum(prod(whole.tensors[name].shape) for name in self.names)
        info = replace(first, shape=(count,), parameter=self.parameter)
        return replace(whole, tensors={info.name: info}, tied={})

    def read(self, tensor: str, rows: "slice | Tensor | None" = None) -> Tensor:
        """All of it, or some of its entries; read once."""
        if tensor != self.names[0]:
            raise KeyError(f"a run of tensors that begins with {self.names[0]!r}, not {tensor!r}")
        return self._values if rows is None else self._values[rows]

    @cached_property
    def _values(self) -> Tensor:
        if isinstance(self.weights, Audited):
            return self.weights.read_joined(self.names)
        return torch.cat([self.weights.read(name).reshape(-1) for name in self.names])
