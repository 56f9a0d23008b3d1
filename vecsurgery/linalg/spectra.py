"""What singular values and directions say of a matrix and of several: ranks, noise floor, angles, interference."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .leading import Singular, factored_svd, leading_svd
from .stacks import interference

WHOLE_SIZE = 1024
"""Up to this smaller dimension the whole decomposition takes a second or two."""


@dataclass(frozen=True)
class Spectrum:
    """The singular values of a matrix, float64, with the leading directions."""

    values: Float[Tensor, " k"]
    """σ, descending."""
    leading: Singular
    """The triplets that were asked for."""
    complete: bool
    """Whether `values` has all that are above zero."""


def dense_spectrum(matrix: Float[Tensor, "outputs inputs"], wanted: int, *, whole: bool = False) -> Spectrum:
    """The singular values of a dense matrix, and its `wanted` leading triplets.

    Complete up to a smaller dimension of 1024, by LAPACK in float64. Larger matrices have their leading values only,
    unless `whole` asks for all: then by the eigenvalues of the smaller Gram matrix, exact down to 1e-8 of the largest.
    """
    if min(matrix.shape) <= WHOLE_SIZE:
        found = leading_svd(matrix.double(), min(matrix.shape))
        return Spectrum(found.values, _first(found, wanted), complete=True)
    leading = leading_svd(matrix, wanted)
    if not whole:
        return Spectrum(leading.values, leading, complete=False)
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    return Spectrum(torch.linalg.eigvalsh(wide @ wide.T).flip(0).clamp(min=0.0).sqrt(), leading, complete=True)


def factored_spectrum(
    left: Float[Tensor, "outputs rank"], right: Float[Tensor, "rank inputs"], wanted: int
) -> Spectrum:
    """The same of B A from its factors, always complete; (outputs, inputs) is never formed."""
    found = factored_svd(left.double(), right.double(), left.shape[1])
    return Spectrum(found.values, _first(found, wanted), complete=True)


def _first(found: Singular, count: int) -> Singular:
    return Singular(found.left[:, :count], found.values[:count], found.right[:, :count])


def effective_rank(values: Float[Tensor, " rank"]) -> float:
    """exp(−Σ p_i ln p_i) with p_i = σ_i/Σσ, of all singular values; between 1 and their number, 0 for a zero matrix.

    Source: Roy and Vetterli, The effective rank (EUSIPCO 2007).
    """
    positive = values[values > 0.0].double()
    if not len(positive):
        return 0.0
    shares = positive / positive.sum()
    return math.exp(-float((shares * shares.log()).sum()))


def noise_floor(shape: tuple[int, int], rms: float, dtype: torch.dtype) -> float:
    """(√out + √in)·ulp(rms)/√12: the largest singular value that rounding alone gives a matrix of this shape.

    That is about the largest of a matrix of independent errors of the deviation `rounding_noise`, which see.
    """
    return largest_of_noise(shape, rounding_noise(rms, dtype))


def rounding_noise(rms: float, dtype: torch.dtype) -> float:
    """ulp(rms)/√12: the standard deviation of what rounding to a type adds to the entries of a weight.

    Each entry of a stored weight is off by up to half the spacing of its type, evenly spread. rms: root mean square of
    the weight's entries. dtype: the type that it is stored in.
    """
    if rms <= 0.0:
        return 0.0
    return math.ldexp(torch.finfo(dtype).eps, math.frexp(rms)[1] - 1) / math.sqrt(12.0)


def largest_of_noise(shape: Sequence[int], deviation: float) -> float:
    """(√out + √in)·deviation: about the largest singular value of a matrix of independent errors."""
    outputs, inputs = shape
    return (math.sqrt(outputs) + math.sqrt(inputs)) * deviation


def principal_angles(first: Float[Tensor, "space k"], second: Float[Tensor, "space l"]) -> Float[Tensor, " least"]:
    """The min(k, l) principal angles between the spans of two sets of orthonormal columns, ascending, in radians.

    Angles below 45° come from their sines, which keep them exact where a cosine would round to one.
    Source: Knyazev and Argentati, SIAM J. Sci. Comput. 23 (2002).
    """
    wide, narrow = (first, second) if first.shape[1] >= second.shape[1] else (second, first)
    wide, narrow = wide.double(), narrow.double()
    cosines = wide.T @ narrow
    sines = torch.linalg.svdvals(narrow - wide @ cosines).flip(0)[: narrow.shape[1]].clamp(max=1.0)
    small = torch.linalg.svdvals(cosines).clamp(max=1.0)
    return torch.where(small.square() >= 0.5, sines.arcsin(), small.arccos())


def interference_between(parts: Sequence[Singular]) -> float:
    """Singular task interference (STI) of several deltas from their leading triplets: see `interference`.

    0 exactly where the deltas write into and read from orthogonal directions. In the unit of the singular values.
    """
    sides = (torch.cat([part.left for part in parts], 1), torch.cat([part.right for part in parts], 1))
    outputs, inputs = (side.double().T @ side.double() for side in sides)
    return interference(outputs, torch.cat([part.values for part in parts]), inputs)
