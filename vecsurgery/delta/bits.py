"""Exact arithmetic of a delta that is added and taken away again: sums that every machine rounds alike, and the bits
that rounding loses.
"""

import torch
from jaxtyping import Float, Integer, Shaped
from torch import Tensor

INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of an element → the type that its bits are compared and changed in."""
_BLOCK = 1 << 18
"""Elements of a product that are computed at a time, so that they stay in the cache over all terms."""


def added(weight: Shaped[Tensor, "..."], delta: Float[Tensor, "..."] | None) -> Shaped[Tensor, "..."]:
    """W + D in the wider of their types (float32 at least), rounded once to the type of W.

    An entry of D that is zero leaves the bits of W, a negative zero among them: rows of zeros need not be stored.
    """
    return weight if delta is None else _rounded(weight, delta, 1.0)


def removed(weight: Shaped[Tensor, "..."], delta: Float[Tensor, "..."] | None) -> Shaped[Tensor, "..."]:
    """W − D, in the same arithmetic as `added`."""
    return weight if delta is None else _rounded(weight, delta, -1.0)


def _rounded(weight: Shaped[Tensor, "..."], delta: Float[Tensor, "..."], sign: float) -> Shaped[Tensor, "..."]:
    wide = torch.promote_types(torch.promote_types(weight.dtype, delta.dtype), torch.float32)
    result = weight.to(wide, copy=True).add_(delta.to(wide), alpha=sign).to(weight.dtype)
    return torch.where(delta == 0, weight, result)


def product(
    left: Float[Tensor, "outputs rank"], right: Float[Tensor, "rank inputs"]
) -> Float[Tensor, "outputs inputs"]:
    """B A in float32, each entry summed over the rank in order, each product and sum rounded to float32.

    A library's matrix product orders its sums by machine and threads; the bits of this one are the same everywhere.
    """
    left, right = left.to(torch.float32), right.to(torch.float32)
    result = torch.zeros(left.shape[0], right.shape[1])
    step = max(1, _BLOCK // max(1, right.shape[1]))
    for start in range(0, left.shape[0], step):
        rows, block = left[start : start + step], result[start : start + step]
        term = torch.empty_like(block)
        for index in range(left.shape[1]):
            torch.mul(rows[:, index, None], right[index], out=term)
            block.add_(term)
    return result


def bits(values: Shaped[Tensor, "..."]) -> Integer[Tensor, " entries"]:
    """The bits of a tensor, flat, as integers of the same width."""
    flat = values.contiguous().reshape(-1)
    return flat.view(torch.uint8) if flat.dtype == torch.bool else flat.view(INTEGERS[flat.dtype.itemsize])


def differing(
    got: Shaped[Tensor, "..."], wanted: Shaped[Tensor, "..."]
) -> tuple[Integer[Tensor, " n"], Integer[Tensor, " n"]]:
    """Where the bits of two tensors of one type and shape differ (flat places, ascending); the exclusive or there."""
    change = torch.bitwise_xor(bits(got), bits(wanted))
    places = change.nonzero().reshape(-1)
    return places, change[places]


def patched(
    values: Shaped[Tensor, "..."], places: Integer[Tensor, " n"] | None, change: Integer[Tensor, " n"]
) -> Shaped[Tensor, "..."]:
    """The values with the bits of `change` turned over at `places`; everywhere, in order, without places."""
    flat = bits(values).clone()
    if places is None:
        flat ^= change
    else:
        where = places.to(torch.int64)
        flat[where] = flat[where] ^ change
    return flat.view(values.dtype).reshape(values.shape)
