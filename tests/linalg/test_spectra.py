"""Ranks, noise floor, angles and interference equal those of plain float64 computations."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vecsurgery import linalg
from vecsurgery.linalg import spectra

_SEEDS = st.integers(0, 2**31)


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _basis(seed: int, size: int, count: int) -> Tensor:
    basis: Tensor = torch.linalg.qr(_random(seed, size, count))[0]
    return basis


@settings(max_examples=30, deadline=None)
@given(_SEEDS, st.integers(4, 12), st.integers(1, 4), st.integers(1, 4), st.sampled_from([0.0, 1e-4, 1.0]))
def test_principal_angles_are_those_of_scipy(seed: int, size: int, one: int, other: int, apart: float) -> None:
    first = _basis(seed, size, one)
    mixed = first[:, :1] + apart * _random(seed + 1, size, other)
    second = torch.linalg.qr(mixed)[0] if apart else _basis(seed + 2, size, other)
    found = linalg.principal_angles(first, second)
    expected = np.sort(scipy.linalg.subspace_angles(first.numpy(), second.numpy()))
    # beside a large angle scipy takes a small one from its cosine, where rounding hides what is below 1e-7 or so
    np.testing.assert_allclose(np.cos(found.numpy()), np.cos(expected), atol=1e-11)
    apparent = expected > 1e-3
    np.testing.assert_allclose(found.numpy()[apparent], expected[apparent], rtol=1e-8)


def test_angles_far_below_the_rounding_of_a_cosine_are_kept() -> None:
    turned = torch.tensor([[math.cos(1e-10)], [math.sin(1e-10)], [0.0]], dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    assert float(linalg.principal_angles(eye[:, :1], turned)[0]) == pytest.approx(1e-10, rel=1e-9)
    beside = torch.cat([turned, eye[:, 2:]], dim=1)
    # both lie in the plane of the first two, and the third is at a right angle to it
    angles = linalg.principal_angles(eye[:, :2], beside)
    assert angles.tolist() == pytest.approx([0.0, math.pi / 2], abs=1e-15)


def test_the_effective_rank_counts_equal_values_and_is_one_for_a_single_one() -> None:
    assert linalg.effective_rank(torch.full((7,), 0.3, dtype=torch.float64)) == pytest.approx(7.0)
    assert linalg.effective_rank(torch.tensor([2.0, 0.0, 0.0])) == 1.0
    assert linalg.effective_rank(torch.zeros(3)) == 0.0
    # p = (3/4, 1/4)
    assert linalg.effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(4 / 3**0.75)


@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 7), (torch.float16, 10), (torch.float32, 23)])
def test_the_noise_floor_is_the_spacing_of_the_type_at_the_weight_s_size(dtype: torch.dtype, digits: int) -> None:
    # 0.3 lies in [2⁻², 2⁻¹)
    expected = (8 + 5) * 2.0 ** (-2 - digits) / math.sqrt(12)
    assert linalg.noise_floor((64, 25), 0.3, dtype) == pytest.approx(expected, rel=1e-12)
    assert linalg.noise_floor((64, 25), 0.25, dtype) == linalg.noise_floor((64, 25), 0.3, dtype)
    assert linalg.noise_floor((64, 25), 0.0, dtype) == 0.0


def test_rounding_alone_stays_below_the_noise_floor_and_comes_close_to_it() -> None:
    # all entries in one binade, so that their spacing is one number
    weight = 0.3 + 0.1 * torch.rand(200, 120, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = weight.to(torch.bfloat16).double() - weight
    noise = noise - noise.mean()
    ratio = float(torch.linalg.svdvals(noise)[0]) / linalg.noise_floor((200, 120), 0.35, torch.bfloat16)
    assert 0.85 < ratio < 1.05


def _interference(parts: list[linalg.Singular]) -> float:
    """The published formula, as it stands."""
    left, right = (np.concatenate([getattr(p, side).numpy() for p in parts], 1) for side in ("left", "right"))
    values, k = np.diag(np.concatenate([p.values.numpy() for p in parts])), left.shape[1]
    product = (left.T @ left - np.eye(k)) @ values @ (right.T @ right - np.eye(k))
    return float(np.abs(product).sum()) / (k * (k - 1))


@settings(max_examples=20, deadline=None)
@given(_SEEDS, st.integers(1, 3), st.integers(1, 3))
def test_interference_is_the_published_formula(seed: int, first: int, second: int) -> None:
    parts = [
        linalg.factored_spectrum(_random(seed + place, 8, rank), _random(seed + 9 + place, rank, 6), rank).leading
        for place, rank in enumerate((first, second))
    ]
    assert linalg.interference_between(parts) == pytest.approx(_interference(parts), rel=1e-9)


def test_orthogonal_deltas_do_not_interfere() -> None:
    eye = torch.eye(6, dtype=torch.float64)
    parts = [
        linalg.Singular(eye[:, at : at + 2], torch.tensor([3.0, 1.0]).double(), eye[:, at : at + 2]) for at in (0, 2)
    ]
    assert linalg.interference_between(parts) == 0.0
    assert linalg.interference_between([linalg.Singular(eye[:, :1], torch.ones(1).double(), eye[:, :1])]) == 0.0


@settings(max_examples=20, deadline=None)
@given(_SEEDS, st.integers(2, 9), st.integers(2, 9), st.integers(1, 4))
def test_factors_have_the_spectrum_of_their_product(seed: int, rows: int, columns: int, rank: int) -> None:
    left, right = _random(seed, rows, rank).float(), _random(seed + 1, rank, columns).float()
    factored = linalg.factored_spectrum(left, right, 2)
    dense = linalg.dense_spectrum(left.double() @ right.double(), 2)
    expected = np.linalg.svd(left.double().numpy() @ right.double().numpy(), compute_uv=False)[: len(factored.values)]
    assert factored.complete
    assert dense.complete
    np.testing.assert_allclose(factored.values.numpy(), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(dense.values[: len(expected)].numpy(), expected, rtol=1e-9, atol=1e-12)
    assert len(factored.leading.values) == min(2, len(factored.values))


def test_a_large_matrix_has_its_leading_values_or_all_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "WHOLE_SIZE", 16)
    for matrix in (_random(1, 40, 24), _random(2, 24, 40).float()):
        expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
        some, everything = linalg.dense_spectrum(matrix, 5), linalg.dense_spectrum(matrix, 5, whole=True)
        assert (some.complete, everything.complete) == (False, True)
        np.testing.assert_allclose(some.values.numpy(), expected[:5], rtol=1e-5)
        np.testing.assert_allclose(everything.values.numpy(), expected, rtol=1e-5)
        assert everything.leading.left.shape == (matrix.shape[0], 5)
