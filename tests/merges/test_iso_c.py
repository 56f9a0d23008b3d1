"""iso_c equals an independent singular value decomposition, and keeps what it promises."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import models
from support.results import tensors_of
from torch import Tensor

import vecsurgery
from vecsurgery.delta import Dense, Factored
from vecsurgery.merges import MergedTensor
from vecsurgery.merges.iso_c import IsoC, iso_c

MATRIX = MergedTensor("a.weight", matrix=True)


def _reference(total: Tensor, rtol: float) -> Tensor:
    """By the whole decomposition in float64."""
    left, values, right = torch.linalg.svd(total.double(), full_matrices=False)
    kept = values > rtol * values[0]
    return values[kept].mean() * left[:, kept] @ right[kept]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(0, 1000))
def test_the_singular_values_of_the_sum_become_their_mean(rows: int, columns: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    deltas = {
        "x": Dense(random(rows, rank) @ random(rank, columns)),
        "y": Factored(random(rows, 1), random(1, columns)),
    }
    total = 0.5 * deltas["x"].dense() - 2.0 * deltas["y"].dense()
    merged = iso_c(deltas, {"x": 0.5, "y": -2.0}, options=IsoC(), tensor=MATRIX)
    assert torch.allclose(merged.delta.dense(), _reference(total, 1e-6), rtol=1e-6, atol=1e-8)
    assert merged.facts["rank"] == min(rows, columns, rank + 1)
    values = torch.linalg.svdvals(merged.delta.dense())
    assert float(values.sum()) == pytest.approx(float(torch.linalg.svdvals(total).sum()), rel=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 1000))
def test_it_follows_the_order_of_deltas_rotations_and_transposition(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, rows, columns, generator=generator, dtype=torch.float64)
    left, _ = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64))
    right, _ = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64))

    def merged(*pairs: tuple[str, Tensor]) -> Tensor:
        weights = {"x": 0.5, "y": -2.0}
        found = {name: Dense(values.contiguous()) for name, values in pairs}
        return iso_c(found, weights, options=IsoC(), tensor=MATRIX).delta.dense()

    plain = merged(("x", first), ("y", second))
    close = {"rtol": 1e-7, "atol": 1e-9}
    torch.testing.assert_close(merged(("y", second), ("x", first)), plain, **close)
    torch.testing.assert_close(merged(("x", first.T), ("y", second.T)), plain.T, **close)
    rotated = merged(("x", left @ first @ right), ("y", left @ second @ right))
    torch.testing.assert_close(rotated, left @ plain @ right, **close)
    torch.testing.assert_close(merged(("x", 3.0 * first), ("y", 3.0 * second)), 3.0 * plain, **close)


def test_directions_below_rtol_stay_out() -> None:
    deltas = {"x": Dense(torch.diag(torch.tensor([4.0, 2.0, 0.1])))}
    merged = iso_c(deltas, {"x": 1.0}, options=IsoC(rtol=0.1), tensor=MATRIX)
    assert torch.allclose(merged.delta.dense(), torch.diag(torch.tensor([3.0, 3.0, 0.0])), atol=1e-6)
    assert merged.facts["rank"] == 2.0


def test_nothing_comes_of_nothing() -> None:
    merged = iso_c({"x": Dense(torch.zeros(3, 2))}, {"x": 1.0}, options=IsoC(), tensor=MATRIX)
    assert not merged.delta.dense().any()


@pytest.mark.parametrize(("others", "share"), [("sum", 1.0), ("mean", 0.5)])
def test_from_checkpoint_to_checkpoint_other_tensors_are_added_or_averaged(
    tmp_path: Path, others: str, share: float
) -> None:
    base = models.checkpoint(tmp_path / "base", num_hidden_layers=1)
    for seed, name in enumerate(("one", "two"), 2):
        models.perturbed(base, tmp_path / name, seed=seed)
    edited = vecsurgery.edit(
        into=base,
        deltas={name: tmp_path / name for name in ("one", "two")},
        steps=[{"merge": "iso_c", "as": "both", "weights": {"one": 0.7}, "others": others}],
        weights={"both": 2.0},
    ).state_dict()
    into, one, two = (tensors_of(tmp_path / name) for name in ("base", "one", "two"))
    for name, tensor in into.items():
        total = 0.7 * (one[name].double() - tensor) + (two[name].double() - tensor)
        expected = _reference(total, 1e-6) if name.endswith("proj.weight") else share * total
        assert torch.allclose(edited[name].double(), tensor + 2.0 * expected, atol=2e-6), name
