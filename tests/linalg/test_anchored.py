"""The joint form of two moments is exact: F, C and F (F + λC)⁻¹ come out of it, and so does the energy that is left."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vecsurgery import linalg

_SEEDS = st.integers(0, 2**31)
_WIDTH = 12


def _subspace(seed: int, count: int, stored: int = _WIDTH) -> linalg.Subspace:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, _WIDTH + 1, dtype=torch.float64) ** -1.0
    turn = torch.linalg.qr(torch.randn(_WIDTH, _WIDTH, generator=generator, dtype=torch.float64)).Q
    rows = torch.randn(count, _WIDTH, generator=generator, dtype=torch.float64) * scales @ turn
    return linalg.moment_subspace(rows.T @ rows, count, stored)


def _moment(subspace: linalg.Subspace) -> Tensor:
    """What the subspace stands for, divided by its mean eigenvalue."""
    directions = subspace.directions
    isotropic = torch.eye(subspace.width, dtype=torch.float64) - directions @ directions.T
    moment = directions @ torch.diag(subspace.energies) @ directions.T + subspace.tail * isotropic
    return moment * (subspace.width / subspace.total)


_CASES = st.tuples(
    _SEEDS, st.sampled_from([3, 30]), st.sampled_from([3, 30]), st.sampled_from([(12, 12), (4, 12), (3, 4)])
)


@settings(max_examples=60, deadline=None)
@given(_CASES)
def test_both_moments_are_diagonal_in_the_joint_directions(case: tuple[int, int, int, tuple[int, int]]) -> None:
    seed, forget_count, retain_count, (forget_stored, retain_stored) = case
    forget = _subspace(seed, forget_count, forget_stored)
    retain = _subspace(seed + 1, retain_count, retain_stored)
    joint = linalg.Anchored.of(forget, retain)
    identity = torch.eye(_WIDTH, dtype=torch.float64)
    basis = identity if joint.basis is None else joint.basis
    outside = identity - basis @ basis.T
    shares = torch.where(torch.arange(len(joint.shares)) < joint.shrunk, joint.shares, 0.0)
    penalty = basis @ (joint.forward * shares) @ joint.forward.T @ basis.T + joint.tails[1] * outside
    anchor = basis @ (joint.forward * (1 - shares)) @ joint.forward.T @ basis.T + joint.tails[0] * outside
    torch.testing.assert_close(penalty, _moment(retain), rtol=0, atol=1e-9)
    torch.testing.assert_close(anchor, _moment(forget) + 1e-6 * identity, rtol=0, atol=1e-9)
    torch.testing.assert_close(
        joint.forward.T @ joint.backward, torch.eye(len(shares), dtype=torch.float64), atol=1e-8, rtol=0
    )


@settings(max_examples=60, deadline=None)
@given(_CASES, st.floats(1e-3, 1e3))
def test_the_split_energy_is_that_of_the_filtered_matrix(
    case: tuple[int, int, int, tuple[int, int]], strength: float
) -> None:
    seed, forget_count, retain_count, (forget_stored, retain_stored) = case
    forget = _subspace(seed, forget_count, forget_stored)
    retain = _subspace(seed + 1, retain_count, retain_stored)
    matrix = torch.randn(5, _WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    joint = linalg.Anchored.of(forget, retain)
    product = joint.product(matrix)
    squares = linalg.column_squares(joint.coordinates(product))
    outside = 0.0 if joint.basis is None else max(0.0, float(matrix.square().sum() - product.square().sum()))
    bias = joint.bias(squares, outside)
    edited = joint.filtered(matrix, product, strength)
    scale = retain.total / _WIDTH
    moments = _moment(forget) + 1e-6 * torch.eye(_WIDTH, dtype=torch.float64), _moment(retain) * scale

    def effect(values: Tensor, moment: Tensor) -> float:
        return float((values @ moment * values).sum())

    kind = joint.kind
    left = bias.after(kind.factors(strength), kind.tail(strength))
    assert bias.total == pytest.approx(effect(matrix, moments[1]), rel=1e-8)
    assert left == pytest.approx(effect(edited, moments[1]), rel=1e-6, abs=1e-9)
    kept = effect(edited, moments[0]) / effect(matrix, moments[0])
    assert joint.kept(squares, outside, strength) == pytest.approx(kept, rel=1e-6, abs=1e-12)


def test_overlapping_directions_are_counted_once() -> None:
    """[V_f V_r] is then singular; the basis is orthonormal all the same."""
    forget = _subspace(5, 30, 4)
    retain = linalg.Subspace(forget.directions.flip(1), forget.energies, forget.rest, 30)
    joint = linalg.Anchored.of(forget, retain)
    assert joint.basis is not None
    torch.testing.assert_close(joint.basis.T @ joint.basis, torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(joint.basis @ (joint.basis.T @ forget.directions), forget.directions)


def test_a_retained_text_without_tail_leaves_what_it_lacks_alone() -> None:
    joint = linalg.Anchored.of(_subspace(6, 30), _subspace(7, 3))
    assert joint.shrunk == joint.kind.rank == 3
    assert joint.kind.tail_weight == 0.0
