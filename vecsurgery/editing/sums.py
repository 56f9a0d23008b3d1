"""Adding up: the deltas of a tensor to one, and that one to W."""

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor

from vecsurgery.delta import Delta, Dense, Factored


def summed(terms: Iterable[Delta]) -> Delta:
    """Their sum: factored where all are factored (factors side by side), else dense in the widest of their types."""
    deltas = list(terms)
    if len(deltas) == 1:
        return deltas[0]
    factored = [delta for delta in deltas if isinstance(delta, Factored)]
    if len(factored) == len(deltas):
        left = torch.cat([delta.left for delta in factored], dim=1)
        return Factored(left, torch.cat([delta.right for delta in factored], dim=0))
    values = [delta.dense() for delta in deltas]
    wide = reduce(torch.promote_types, (each.dtype for each in values))
    total = values[0].to(wide, copy=True)
    for each in values[1:]:
        total += each
    return Dense(total)


def added(base: Tensor, delta: Delta, *, transposed: bool) -> Tensor:
    """W + D in the wider of their types, in stored orientation; rounding to the storage type is the caller's."""
    values = delta.dense()
    wide = torch.promote_types(base.dtype, values.dtype)
    if transposed:
        values = values.T
    if base.dtype == wide:
        return base + values
    return base.to(wide).add_(values)
