"""The forget-anchored form of retain_energy: the joint directions of two geometries, and one delta filtered by them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from vecsurgery import delta, linalg
from vecsurgery.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from vecsurgery.delta import Delta
    from vecsurgery.linalg import Anchored, Bias, Subspace

    from ._facts import Probe

_MOST = 2048
"""Joint directions of a site that are decomposed at most, as of a measured moment."""
_SITES = 2
"""Sites whose joint directions are kept: in name order k, o, q, v two of them take turns."""


@dataclass(frozen=True)
class AnchoredDelta:
    """One delta in the joint directions of its site, before a strength is chosen."""

    joint: "Anchored"
    raw: "Delta"
    product: "Tensor"
    """M N, where M holds the rows that read the input: D itself, or A of D = B A."""
    squares: "Tensor"
    """c_i = ‖D N a_i‖²."""
    outside: float
    """‖D‖² − ‖D N‖²."""
    bias: "Bias"

    @classmethod
    def of(cls, before: "Probe", forget: "Subspace") -> "AnchoredDelta":
        joint = _joint(forget, before.subspace)
        product = joint.product(_reading(before.raw))
        squares = _squares(before.raw, joint.coordinates(product))
        outside = 0.0 if joint.basis is None else before.squared_norm - float(_squares(before.raw, product).sum())
        outside = max(0.0, outside)
        return cls(joint, before.raw, product, squares, outside, joint.bias(squares, outside))

    def filtered(self, strength: float) -> "Delta":
        """D F (F + λC)⁻¹; a factored delta stays one."""
        matrix = self.joint.filtered(_reading(self.raw), self.product, strength)
        if isinstance(self.raw, delta.Dense):
            return delta.Dense(matrix, self.raw.noise)
        return delta.Factored(self.raw.left, matrix)

    def kept(self, strength: float) -> float:
        """The share of the delta's effect on the forget text that is left."""
        return self.joint.kept(self.squares, self.outside, strength)


@lru_cache(maxsize=_SITES)
def _joint(forget: "Subspace", retain: "Subspace") -> "Anchored":
    """Computed once for the matrices that share a site: they are given the same two objects.

    Errors: InputError where so many directions are stored that decomposing them would take minutes a site.
    """
    span = min(retain.width, forget.rank + retain.rank)
    if span > _MOST:
        raise InputError(
            f"the two geometries store {forget.rank} and {retain.rank} of {retain.width} directions, {span} together; "
            f"`forget` decomposes at most {_MOST}: give both a smaller max_directions"
        )
    return linalg.Anchored.of(forget, retain)


def _reading(raw: "Delta") -> "Tensor":
    return raw.values if isinstance(raw, delta.Dense) else raw.right


def _squares(raw: "Delta", product: "Tensor") -> "Tensor":
    """Squared lengths of the columns of D X, where `product` is M X."""
    return linalg.column_squares(product if isinstance(raw, delta.Dense) else raw.left @ product)
