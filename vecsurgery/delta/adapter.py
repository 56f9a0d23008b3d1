"""The delta that a LoRA adapter holds, kept factored, and the weights of a base with an adapter on it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from vecsurgery.checkpoint.hashes import file_sha256
from vecsurgery.checkpoint.types import TensorInfo
from vecsurgery.delta import reading
from vecsurgery.delta.adapter_file import AdapterFile, Copy, Entry, LowRank, Whole
from vecsurgery.delta.reading import Finder, Rows, Weights
from vecsurgery.delta.types import Delta, Dense, Factored
from vecsurgery.errors import InputError


@dataclass(frozen=True)
class Adapter:
    """D = scale·B·A of a PEFT LoRA adapter, to be added to `into`; never formed, never rounded.

    scale = alpha/r, or alpha/√r (rslora), with the adapter's own ranks and alphas per module, folded into B in float32
    (Hu et al., arXiv 2106.09685; Kalajdzievski, arXiv 2312.03732). Parameters that the adapter holds in full
    (modules_to_save, biases, embeddings) give the dense delta saved − into.
    Errors: InputError where a tensor of the adapter fits nothing in `into`; UnsupportedError for other kinds of
    adapter; on reading, InputError for NaN and infinity.
    """

    name: str
    folder: Path
    into: Weights

    def __post_init__(self) -> None:
        for parameter, entry in self._entries.items():
            self._require_fit(self._require_info(parameter), entry)

    @cached_property
    def names(self) -> tuple[str, ...]:
        changed = {self._require_info(parameter).parameter for parameter in self._entries}
        return tuple(info.parameter for info in self.into.layout.tensors.values() if info.parameter in changed)

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.into.fingerprint.encode())
        digest.update(repr(sorted(self._file.config.items())).encode())
        digest.update(file_sha256(self._file.path).encode())
        return digest.hexdigest()

    def read(self, parameter: str, rows: Rows = None, *, precise: bool = False) -> Delta | None:  # noqa: ARG002 - factors are exact
        return self.untied(self._target(parameter), rows)

    def untied(self, parameter: str, rows: Rows = None) -> Delta | None:
        entry = self._entries.get(parameter)
        if entry is None:
            return None
        info = self._require_info(parameter)
        return self._factored(entry, info, rows) if isinstance(entry, LowRank) else self._dense(entry, info, rows)

    def changed(self, parameter: str) -> bool:
        target = self._target(parameter)
        entry = self._entries.get(target)
        if isinstance(entry, Whole):
            info = self._require_info(target)
            return any(self._dense(entry, info, rows) is not None for rows in reading.row_chunks(info.shape, 4))
        return entry is not None and self.untied(target) is not None

    def reads(self, parameter: str) -> int:
        entry = self._entries.get(self._target(parameter))
        if entry is None:
            return 0
        if isinstance(entry, LowRank):
            return self._file.nbytes(entry.left) + self._file.nbytes(entry.right)
        return self._file.nbytes(entry.key) + reading.nbytes(self._require_info(self._target(parameter)))

    def rank(self, parameter: str) -> int | None:
        entry = self._entries.get(self._target(parameter))
        return self._file.shape(entry.left)[1] if isinstance(entry, LowRank) else None

    def stored(self, parameter: str) -> list[tuple[Weights, str]]:
        target = self._target(parameter)
        if not isinstance(self._entries.get(target), Whole):
            return []
        return [(self.into, self._require_info(target).name)]

    def ties(self, alias: str, owner: str) -> bool:
        return alias not in self._entries and owner not in self._entries

    def saved(self, parameter: str) -> Tensor | None:
        """The parameter as the adapter holds it in full, in stored type and orientation; None where it does not."""
        entry = self._entries.get(self._target(parameter))
        return self._file.read(entry.key) if isinstance(entry, Whole) else None

    @cached_property
    def _file(self) -> AdapterFile:
        return AdapterFile(self.folder)

    @cached_property
    def _finder(self) -> Finder:
        return Finder(self.into.layout)

    @cached_property
    def _entries(self) -> Mapping[str, LowRank | Whole]:
        """What changes each parameter of `into`."""
        entries: dict[str, LowRank | Whole] = {}
        for entry in self._file.entries:
            if isinstance(entry, Copy):
                continue
            parameter = self._placed(entry)
            if parameter in entries:
                raise InputError(f"delta {self.name!r}: adapter {self.folder} changes {parameter!r} twice")
            entries[parameter] = entry
        return entries

    @cached_property
    def _copies(self) -> Mapping[str, str]:
        """Parameters of which the adapter carries the base's tensor, with its key."""
        return {self._placed(entry): entry.key for entry in self._file.entries if isinstance(entry, Copy)}

    def _placed(self, entry: Entry) -> str:
        name = f"{entry.module}.weight" if isinstance(entry, LowRank) else entry.parameter
        parameter = self._parameter(name)
        if parameter is None:
            key = entry.left if isinstance(entry, LowRank) else entry.key
            raise InputError(
                f"delta {self.name!r}: tensor {key!r} of adapter {self.folder} fits no tensor of "
                f"{reading.label(self.into)}; expected an adapter trained on that architecture"
            )
        return parameter

    def _parameter(self, name: str) -> str | None:
        """The parameter of `into` by that name, or the only one that has it as its last components."""
        if self._finder.find(name) is not None:
            return name
        matches = [info.parameter for info in self.into.layout.tensors.values() if info.parameter.endswith("." + name)]
        return matches[0] if len(matches) == 1 else None

    def _target(self, parameter: str) -> str:
        """A tied parameter follows its owner where the adapter changes the owner."""
        owner = self.into.layout.tied.get(parameter, parameter)
        return owner if owner in self._entries else parameter

    def _require_info(self, parameter: str) -> TensorInfo:
        info = self._finder.find(parameter)
        if info is None:
            raise InputError(f"delta {self.name!r}: {reading.label(self.into)} has no tensor {parameter!r}")
        return info

    def _require_fit(self, info: TensorInfo, entry: LowRank | Whole) -> None:
        expected = reading.seen_shape(info)
        if isinstance(entry, Whole):
            found, expected = self._file.shape(entry.key), info.shape
        else:
            found = (self._file.shape(entry.left)[0], self._file.shape(entry.right)[1])
            found = found[::-1] if entry.embedding else found
        start = 1 if isinstance(entry, Whole) and reading.has_vocabulary_rows(info) else 0
        if found[start:] != expected[start:] or len(found) != len(expected):
            raise InputError(
                f"delta {self.name!r}: adapter {self.folder} changes {info.parameter!r} by a tensor of shape {found}, "
                f"{reading.label(self.into)} has {expected}; expected an adapter trained on that model"
            )

    def _factored(self, entry: LowRank, info: TensorInfo, rows: Rows) -> Factored | None:
        left, right = self._file.read(entry.left), self._file.read(entry.right)
        wide = reading.wide_type(left.dtype, right.dtype)
        # Contiguous: a transposed view would be rewritten by every product.
        left, right = left.to(wide), right.to(wide)
        if entry.embedding:
            left, right = right.T.contiguous(), left.T.contiguous()
        left = left * entry.scale
        highest = reading.peak(left), reading.peak(right)
        if not all(map(isfinite, highest)):
            raise self._refused_numbers(info)
        if not all(highest):
            return None
        self._require_same_base(info, rows)
        return Factored(left if rows is None else left[rows], right)

    def _dense(self, entry: Whole, info: TensorInfo, rows: Rows) -> Dense | None:
        if len(info.shape) == 0 or reading.is_transposed(info):
            values = self._saved_minus_stored(entry, info, None)
            values = values.T if reading.is_transposed(info) else values
            values = values if rows is None else values[rows]
        elif reading.has_vocabulary_rows(info):
            values = self._token_rows(entry, info, rows)
        else:
            values = self._saved_minus_stored(entry, info, rows)
        highest = reading.peak(values)
        if not isfinite(highest):
            raise self._refused_numbers(info)
        return Dense(values) if highest else None

    def _saved_minus_stored(self, entry: Whole, info: TensorInfo, rows: Rows) -> Float[Tensor, "..."]:
        saved, stored = self._file.read(entry.key, rows), self.into.read(info.name, rows)
        return saved.to(reading.wide_type(saved.dtype, stored.dtype), copy=True).sub_(stored)

    def _token_rows(self, entry: Whole, info: TensorInfo, rows: Rows) -> Float[Tensor, "..."]:
        """saved − stored with zeros in the rows that the adapter does not hold."""
        wanted = reading.row_indices(rows, info.shape[0])
        inside = wanted < self._file.shape(entry.key)[0]
        known = self._saved_minus_stored(entry, info, wanted[inside])
        if bool(inside.all()):
            return known
        values = known.new_zeros((len(wanted), *known.shape[1:]))
        values[inside] = known
        return values

    def _require_same_base(self, info: TensorInfo, rows: Rows) -> None:
        key = self._copies.get(info.parameter)
        if key is None:
            return
        if not reading.same_bytes(self._file.read(key, rows), self.into.read(info.name, rows)):
            raise InputError(
                f"delta {self.name!r}: adapter {self.folder} was trained on another {info.parameter!r} than that of "
                f"{reading.label(self.into)} (it carries its own, {key!r}); name the model it was trained on"
            )

    def _refused_numbers(self, info: TensorInfo) -> InputError:
        return InputError(
            f"delta {self.name!r}: reading adapter {self.folder}: what it holds for {info.parameter!r} contains NaN or "
            "infinity (or `into` does there), expected finite numbers; use another adapter"
        )
