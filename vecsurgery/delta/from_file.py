"""The delta that a delta folder holds, as a source of a recipe."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from jaxtyping import Bool
from torch import Tensor

from vecsurgery.checkpoint.hashes import tensor_bytes
from vecsurgery.checkpoint.types import TensorInfo
from vecsurgery.delta import reading
from vecsurgery.delta.folder import DeltaFolder
from vecsurgery.delta.reading import Finder, Rows, Weights
from vecsurgery.delta.types import Delta, Dense, Factored
from vecsurgery.errors import InputError

_NAMED = 2


@dataclass(frozen=True)
class FromFile:
    """D as a delta folder has it, to be added to `into`.

    `base`: the model that it was made from, which `into` is by default; `advice`: what to do where it is another one.
    Rows of embedding and head that `into` has and the base lacks get no delta, nor do those that `row_masks` leaves out
    (they mean another token there).
    Errors: InputError where the base is another one, the description is not of its tensors, or a changed tensor does
    not fit `into`; on reading, for NaN, and for a file that has not the SHA-256 that the description records.
    """

    name: str
    folder: DeltaFolder
    base: Weights
    into: Weights
    row_masks: Mapping[str, Bool[Tensor, " rows"]] = field(default_factory=dict)
    advice: str = "name that model under `base`"

    def __post_init__(self) -> None:
        require_base(f"delta {self.name!r}", self.folder, self.base, self.advice)
        require_entries(f"delta {self.name!r}", self.folder, self.base)
        wrong = [text for parameter in self.folder.entries if (text := self._misfit(parameter))]
        if wrong:
            more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
            raise InputError(
                f"delta {self.name!r}: {self.folder.path} does not fit {reading.label(self.into)}: "
                f"{'; '.join(wrong[:_NAMED])}{more}. Expected models of one architecture and size"
            )

    @cached_property
    def names(self) -> tuple[str, ...]:
        changed = {info.parameter for parameter in self.folder.entries if (info := self._finder.find(parameter))}
        return tuple(info.parameter for info in self.into.layout.tensors.values() if info.parameter in changed)

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.into.fingerprint} {self.folder.fingerprint}".encode())
        for parameter, mask in sorted(self.row_masks.items()):
            digest.update(parameter.encode())
            digest.update(tensor_bytes(mask))
        return digest.hexdigest()

    def read(self, parameter: str, rows: Rows = None, *, precise: bool = False) -> Delta | None:  # noqa: ARG002 - stored as it is
        target = self._target(parameter)
        entry = self.folder.entries.get(target)
        if entry is not None and entry.file is not None:
            self.folder.verify(entry.file)
        return self.untied(target, rows)

    def untied(self, parameter: str, rows: Rows = None) -> Delta | None:
        if parameter not in self.folder.entries:
            return None
        info = self._finder.find(parameter)
        if info is None or not reading.has_vocabulary_rows(info):
            return self.folder.delta(parameter, rows)
        return self._token_rows(parameter, info, rows)

    def changed(self, parameter: str) -> bool:
        target = self._target(parameter)
        entry = self.folder.entries.get(target)
        if entry is None or entry.kind == "bits":
            return False
        return not self._restricted(target) or self.untied(target) is not None

    def reads(self, parameter: str) -> int:
        target = self._target(parameter)
        return self.folder.nbytes(target) if target in self.folder.entries else 0

    def rank(self, parameter: str) -> int | None:
        target = self._target(parameter)
        return self.folder.rank(target) if target in self.folder.entries else None

    def stored(self, parameter: str) -> list[tuple[Weights, str]]:  # noqa: ARG002 - none is read
        return []

    def ties(self, alias: str, owner: str) -> bool:
        return alias not in self.folder.entries or owner not in self.folder.entries

    @cached_property
    def _finder(self) -> Finder:
        return Finder(self.into.layout)

    def _target(self, parameter: str) -> str:
        """The parameter whose delta counts: tied ones share the delta of the one that has any."""
        layout = self.into.layout
        owner = layout.tied.get(parameter, parameter)
        names = (owner, parameter, *(alias for alias, other in layout.tied.items() if other == owner))
        return next((name for name in names if name in self.folder.entries), parameter)

    def _restricted(self, parameter: str) -> bool:
        """Whether some stored rows have no place in `into`."""
        info = self._finder.find(parameter)
        if info is None or not reading.has_vocabulary_rows(info):
            return False
        return parameter in self.row_masks or info.shape[0] < self.folder.seen_shape(parameter)[0]

    def _misfit(self, parameter: str) -> str | None:
        info = self._finder.find(parameter)
        if info is None:
            return f"it has no tensor {parameter!r}"
        ours, theirs = reading.seen_shape(info), self.folder.seen_shape(parameter)
        start = 1 if reading.has_vocabulary_rows(info) else 0
        fits = ours[start:] == theirs[start:] and len(ours) == len(theirs)
        return None if fits else f"{parameter} is {ours} there and {theirs} in the delta"

    def _token_rows(self, parameter: str, info: TensorInfo, rows: Rows) -> Delta | None:
        """The delta with zeros in rows that the base lacks or that mean another token."""
        common = self.folder.seen_shape(parameter)[0]
        wanted = reading.row_indices(rows, info.shape[0])
        found = self.folder.delta(parameter, wanted.clamp(max=common - 1))
        if found is None:
            return None
        keep = wanted < common
        mask = self.row_masks.get(parameter)
        if mask is not None:
            keep = keep & mask[wanted]
        if bool(keep.all()):
            return found
        if isinstance(found, Factored):
            found = Factored(found.left.masked_fill(~keep[:, None], 0.0), found.right)
        else:
            found = Dense(found.values.masked_fill(~keep.reshape(-1, *[1] * (found.values.ndim - 1)), 0.0))
        return found if found.squared_norm() else None


def require_base(doing: str, folder: DeltaFolder, base: Weights, advice: str) -> None:
    """Refuse a model that the delta was not made from. Errors: InputError naming both."""
    made = folder.description.base
    if base.fingerprint != made.fingerprint:
        revision = f" at {made.revision[:12]}" if made.revision else ""
        raise InputError(
            f"{doing}: {folder.path} was made from {made.reference}{revision} (fingerprint {made.fingerprint[:12]}), "
            f"not from {reading.label(base)} (fingerprint {base.fingerprint[:12]}); {advice}"
        )


def require_entries(doing: str, folder: DeltaFolder, model: Weights) -> None:
    """Refuse a delta whose description is not of the tensors of `model`: names, types, shapes, orientation.

    Errors: InputError naming the first tensor that differs.
    """
    ours = {info.parameter: info for info in model.layout.tensors.values()}
    entries = folder.description.tensors
    for parameter in dict.fromkeys([*ours, *entries]):
        info, entry = ours.get(parameter), entries.get(parameter)
        have = (info.name, info.dtype, info.shape, reading.is_transposed(info)) if info else None
        # A tensor that does not change is described without its orientation.
        told = (entry.name, entry.dtype, entry.shape, entry.transposed) if entry else None
        if info and told and entry and entry.kind is None:
            told = (*told[:3], reading.is_transposed(info))
        if have != told:
            raise InputError(
                f"{doing}: tensor {parameter!r} is {_facts(have)} in {reading.label(model)} and {_facts(told)} in "
                f"{folder.path}; expected the checkpoint that the delta belongs to"
            )


def _facts(found: tuple[str, str, tuple[int, ...], bool] | None) -> str:
    if found is None:
        return "missing"
    name, dtype, shape, transposed = found
    return f"{name!r}, {dtype} {shape}{' stored (in, out)' if transposed else ''}"
