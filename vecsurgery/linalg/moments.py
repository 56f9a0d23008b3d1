"""Accumulators of activations: rows kept as they are, or their exact second moment."""

import torch
from jaxtyping import Float
from torch import Tensor

from vecsurgery.errors import UnsupportedError

from .eigen import empty_subspace, moment_subspace, rows_subspace
from .subspace import Subspace

ROWS_LIMIT = 1024
"""Up to so many positions (and no more than the width) the rows are kept: n×n is then the smaller problem."""
WIDTH_LIMIT = 20480
"""The widest input whose (in, in) float64 moment is formed: 3.4 GB."""

_CHUNK = 1024
_PANEL = 256


def accumulator(width: int, count: int) -> "Rows | Moment":
    """The accumulator for `count` positions of inputs of this width: a rule of shape, never of free memory.

    Raises UnsupportedError where the moment would be wider than 20,480; the caller names the site.
    """
    require_width(width, count)
    return Rows(width) if count <= min(width, ROWS_LIMIT) else Moment(width)


def require_width(width: int, count: int) -> None:
    """Refuse what `accumulator` refuses, without making one."""
    if count > min(width, ROWS_LIMIT) and width > WIDTH_LIMIT:
        raise UnsupportedError(
            f"the inputs are {width} wide and {count} positions are to be measured; moments are formed up to a width "
            f"of {WIDTH_LIMIT}, wider inputs take at most {ROWS_LIMIT} positions: lower max_tokens or limit"
        )


class Rows:
    """Keeps every row; exact to float64 in the subspace."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._chunks: list[Float[Tensor, "n inputs"]] = []

    @property
    def count(self) -> int:
        """n: rows so far."""
        return sum(len(chunk) for chunk in self._chunks)

    def add(self, rows: Float[Tensor, "n inputs"]) -> None:
        """Take a copy of some more rows, float32."""
        self._chunks.append(rows.detach().to(torch.float32, copy=True))

    def subspace(self, max_directions: int) -> Subspace:
        """The leading `max_directions` directions of the rows, all that carry energy where they are fewer.

        The accumulator is empty afterwards.
        """
        chunks, self._chunks = self._chunks, []
        return rows_subspace(torch.cat(chunks), max_directions) if chunks else empty_subspace(self.width)


class Moment:
    """Sums XᵀX: float32 products of 1024 rows each, added in float64.

    Rows are gathered into chunks first, so the sum depends on the rows and their order, not on how they came in.
    Only the upper triangle is computed, in panels of 256 rows: little over half the flops, no second (in, in) array.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._total: Float[Tensor, "inputs inputs"] | None = None
        self._chunk: Float[Tensor, "n inputs"] | None = None
        self._filled = 0
        self._summed = 0

    @property
    def count(self) -> int:
        """n: rows so far."""
        return self._summed + self._filled

    def add(self, rows: Float[Tensor, "n inputs"]) -> None:
        """Add some more rows, of any floating type; they are taken as float32."""
        rows = rows.detach()
        if self._chunk is None:
            self._chunk = torch.empty(_CHUNK, self.width, device=rows.device)
        taken = 0
        while taken < rows.shape[0]:
            some = rows[taken : taken + _CHUNK - self._filled]
            taken += some.shape[0]
            self._chunk[self._filled : self._filled + some.shape[0]] = some
            self._filled += some.shape[0]
            if self._filled == _CHUNK:
                self._flush()

    def merge(self, other: "Moment") -> None:
        """Add everything the other accumulator saw: the sums of both, in float64."""
        if other.width != self.width:
            raise ValueError(f"cannot add a moment of width {other.width} to one of width {self.width}")
        theirs, ours = other._sum(), self._sum()
        ours += theirs.to(ours.device)
        self._summed += other.count

    def state(self) -> dict[str, Tensor]:
        """What a file needs to keep: `moment`, XᵀX in float64 (in, in), and `count`, one integer."""
        return {"moment": self._symmetric().clone(), "count": torch.tensor(self.count)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "Moment":
        """The accumulator that `state` was taken from."""
        moment = cls(state["moment"].shape[0])
        moment._total = state["moment"].to(torch.float64, copy=True)
        moment._summed = int(state["count"])
        return moment

    def subspace(self, max_directions: int) -> Subspace:
        """Eigenvectors of C = XᵀX/n: all up to a width of 2048 (at most `max_directions`), else the leading ones.

        The accumulator is empty afterwards: the memory of the sum is used for finding them.
        """
        total, count = self._symmetric(), self.count
        self._total, self._summed = None, 0
        return moment_subspace(total, count, max_directions, consume=True)

    def _sum(self) -> Float[Tensor, "inputs inputs"]:
        """The sum of every row so far; only its upper triangle counts."""
        self._flush()
        self._chunk = None
        if self._total is None:
            self._total = torch.zeros(self.width, self.width, dtype=torch.float64)
        return self._total

    def _flush(self) -> None:
        if self._chunk is None or not self._filled:
            return
        rows = self._chunk[: self._filled]
        if self._total is None:
            self._total = torch.zeros(self.width, self.width, dtype=torch.float64, device=rows.device)
        for start in range(0, self.width, _PANEL):
            self._total[start : start + _PANEL, start:] += rows[:, start : start + _PANEL].T @ rows[:, start:]
        self._summed += self._filled
        self._filled = 0

    def _symmetric(self) -> Float[Tensor, "inputs inputs"]:
        """The sum with its lower triangle copied from the upper one, panel by panel."""
        total = self._sum()
        for start in range(0, self.width, _PANEL):
            stop = start + _PANEL
            total[stop:, start:stop] = total[start:stop, stop:].T
        return total
