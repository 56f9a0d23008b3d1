"""What a fit multiplies a delta by: one number, or a number for each head of its roles."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vecsurgery.checkpoint.types import Matrix, Part
from vecsurgery.delta import Delta, Dense, Factored
from vecsurgery.editing.touches import Rows
from vecsurgery.fits import FittedMatrix, Multiplier


def fitted_matrix(matrix: Matrix, rows: Rows | None) -> FittedMatrix:
    """What a fit is told of a matrix. `rows`: output rows that it multiplies, where not all."""
    parts = [part for part in matrix.parts if rows is None or _shared(part, rows)]
    return FittedMatrix(matrix.layer, {part.role: part.heads for part in parts})


def multiplied(
    delta: Delta, multiplier: Multiplier, matrix: Matrix | None, rows: Rows | None
) -> tuple[Delta, dict[str, float]]:
    """The delta (out, in) of a tensor times what a fit or a scale step says, and figures of it.

    `rows`: output rows that are multiplied, all of them for None. Raises ValueError where the numbers of a role are not
    as many as its heads.
    """
    if not isinstance(multiplier, Mapping):
        return scaled_rows(delta, rows, multiplier), {"factor": multiplier}
    assert matrix is not None  # only block matrices have roles
    along, across = _by_head(multiplier, matrix, rows, delta.shape)
    numbers = [number for role in multiplier.values() for number in role]
    facts = {"factor_mean": sum(numbers) / len(numbers), "factor_least": min(numbers), "factor_largest": max(numbers)}
    return delta.scaled_each(along, across), facts


def _by_head(
    multiplier: Mapping[str, tuple[float, ...]], matrix: Matrix, rows: Rows | None, shape: Sequence[int]
) -> tuple[Tensor | None, Tensor | None]:
    """Numbers of the output rows and of the input columns; None where all are 1."""
    along = across = None
    for part in matrix.parts:
        if part.role not in multiplier:
            continue
        numbers = torch.tensor(multiplier[part.role], dtype=torch.float64)
        if len(numbers) != part.heads:
            raise ValueError(f"{len(numbers)} numbers for the {part.heads} heads of {part.role} in {matrix.tensor!r}")
        each = numbers.repeat_interleave(part.head_dim)
        if part.role == "o":
            across = each
            continue
        along = torch.ones(shape[0], dtype=torch.float64) if along is None else along
        along[_indices(part.rows)] = each
    if along is not None and rows is not None:
        outside = torch.ones(shape[0], dtype=torch.bool)
        outside[_indices(rows)] = False
        along[outside] = 1.0
    return along, across


def _shared(part: Part, rows: Rows) -> bool:
    return any(max(a, c) < min(b, d) for a, b in part.rows for c, d in rows)


def scaled_rows(delta: Delta, rows: Rows | None, factor: float) -> Delta:
    """The delta with these output rows (all of them for None) multiplied by `factor`."""
    return with_rows(delta, rows, rows_of(delta, rows).scaled(factor))


def rows_of(delta: Delta, rows: Rows | None) -> Delta:
    """These output rows of the delta; all of them for None."""
    return delta if rows is None else delta.select_rows(_indices(rows))


def with_rows(delta: Delta, rows: Rows | None, edited: Delta) -> Delta:
    """`delta` with `edited` in these rows; factored where both are: the factors of the other rows and of these."""
    if rows is None:
        return edited
    if isinstance(delta, Factored) and isinstance(edited, Factored):
        chosen = _indices(rows)
        ours, theirs = delta.left.clone(), edited.left.new_zeros(delta.shape[0], edited.left.shape[1])
        ours[chosen], theirs[chosen] = 0.0, edited.left
        if _shared_right(delta, edited):
            return Factored(ours + theirs, delta.right)
        return Factored(torch.cat([ours, theirs], dim=1), torch.cat([delta.right, edited.right]))
    values = delta.dense().clone()
    values[_indices(rows)] = edited.dense().to(values.dtype)
    return Dense(values, delta.noise if isinstance(delta, Dense) else 0.0)


def _shared_right(first: Factored, second: Factored) -> bool:
    """Whether both have the very same A, as rows of one delta have, scaled or not."""
    return first.right is second.right


def _indices(rows: Rows) -> Tensor:
    return torch.cat([torch.arange(start, stop) for start, stop in rows])
