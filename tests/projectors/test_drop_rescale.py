"""drop_rescale drops by chance and keeps the expectation: mergekit's function, exact masks, seeds."""

import pytest
import torch
from mergekit import sparsify
from pydantic import ValidationError
from torch import Tensor

from vecsurgery.delta import Delta, Dense, Edit, Factored
from vecsurgery.projectors.drop_rescale import PROJECTOR


def _drop(delta: Tensor | Delta, density: float, **options: object) -> Edit:
    wrapped = Dense(delta) if isinstance(delta, Tensor) else delta
    return PROJECTOR.function({"task": wrapped}, {}, options=PROJECTOR.options(density=density, **options))


def _edited(edit: Edit) -> Tensor:
    return edit.deltas["task"].dense()


def _random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rescale", "norm"), [("l1", sparsify.RescaleNorm.l1), ("none", None)])
def test_the_edit_is_that_of_mergekits_function_at_the_same_seed(rescale: str, norm: object) -> None:
    delta = _random(24, 40)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = sparsify.bernoulli(delta, 0.3, norm)
    assert torch.equal(_edited(_drop(delta, 0.3, rescale=rescale, seed=7)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kept_entries_are_divided_by_the_density_and_the_others_are_zero(dtype: torch.dtype) -> None:
    delta = _random(50, 60, dtype=dtype)
    edit = _drop(delta, 0.25)
    kept = _edited(edit) != 0
    assert torch.equal(_edited(edit), torch.where(kept, delta / 0.25, 0.0))
    assert edit.facts["kept"] == pytest.approx(float(kept.double().mean()))
    assert edit.facts["norm_ratio"] == pytest.approx(float(_edited(edit).norm() / delta.norm()), rel=1e-6)


def test_a_large_matrix_keeps_its_expected_value_in_every_direction() -> None:
    delta = _random(1000, 1000, dtype=torch.float64) + 1.0
    edited = _edited(_drop(delta, 0.1, seed=3))
    # the mean of 10^6 entries has a standard error of about sqrt(2·9/10^6) = 0.0042, a row's one of 0.13
    assert float(edited.mean()) == pytest.approx(float(delta.mean()), abs=0.02)
    assert float((edited.mean(1) - delta.mean(1)).abs().max()) < 0.7
    assert float((edited != 0).double().mean()) == pytest.approx(0.1, abs=0.002)


def test_l1_rescaling_keeps_the_sum_of_magnitudes_exactly() -> None:
    delta = _random(30, 30, dtype=torch.float64)
    assert float(_edited(_drop(delta, 0.2, rescale="l1")).abs().sum()) == pytest.approx(float(delta.abs().sum()))


def test_density_one_returns_the_delta_itself() -> None:
    dense, factored = Dense(_random(3, 4)), Factored(_random(3, 2), _random(2, 4))
    for delta in (dense, factored):
        edit = _drop(delta, 1.0)
        assert edit.deltas["task"] is delta
        assert (edit.facts["kept"], edit.facts["norm_ratio"]) == (1.0, 1.0)


def test_a_factored_delta_equals_the_dense_edit() -> None:
    left, right = _random(6, 2), _random(2, 8, seed=1)
    assert torch.equal(_edited(_drop(Factored(left, right), 0.5)), _edited(_drop(left @ right, 0.5)))


def test_a_view_that_is_transposed_in_memory_gets_the_same_mask() -> None:
    delta = _random(12, 20)
    assert torch.equal(_edited(_drop(delta.T.contiguous().T, 0.5)), _edited(_drop(delta, 0.5)))


def test_the_mask_depends_on_the_seed_alone_and_the_process_keeps_its_own_chance() -> None:
    delta = _random(40, 40)
    before = torch.random.get_rng_state()
    first = _edited(_drop(delta, 0.5, seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        assert torch.equal(_edited(_drop(delta, 0.5, seed=1)), first)
    finally:
        torch.set_num_threads(threads)
    assert not torch.equal(_edited(_drop(delta, 0.5, seed=2)), first)
    assert torch.equal(_edited(_drop(2 * delta, 0.5, seed=1)), 2 * first)


@pytest.mark.parametrize("options", [{"density": 0.0}, {"density": 1.1}, {"density": 0.5, "seed": -1}, {}])
def test_wrong_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PROJECTOR.options(**options)
