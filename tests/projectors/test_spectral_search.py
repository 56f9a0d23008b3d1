"""spectral on matrices in which the leading triplets are searched for: the laws hold there as they do elsewhere."""

import pytest
import torch
from torch import Tensor

from tests.blackbox import spectral_reference as reference
from vecsurgery import linalg
from vecsurgery.delta import Dense
from vecsurgery.linalg import lanczos, leading
from vecsurgery.projectors.spectral import PROJECTOR


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _slots(deltas: dict[str, Tensor]) -> dict[str, Tensor]:
    wrapped = {name: Dense(each) for name, each in deltas.items()}
    edit = PROJECTOR.function(wrapped, {}, options=PROJECTOR.options(rank=10))
    return {name: each.dense().double() for name, each in edit.deltas.items()}


def _require_equal(found: dict[str, Tensor], expected: dict[str, Tensor], within: float) -> None:
    assert found.keys() == expected.keys()
    for name, each in expected.items():
        assert float((found[name] - each).norm()) <= within * float(each.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_the_laws_hold_where_triplets_are_searched_for(
    monkeypatch: pytest.MonkeyPatch, power: float, dtype: torch.dtype
) -> None:
    """Gaussian deltas, whose values are flat, and ones with values that fall; a tenth of their directions."""
    monkeypatch.setattr(leading, "EXACT_SIZE", 100)
    monkeypatch.setattr(lanczos, "_LEAST_BLOCK", 4)
    shape = (200, 240)
    assert linalg.search_space(*shape, 10)
    deltas = {}
    for seed, name in enumerate("ab"):
        left, values, right = torch.linalg.svd(_random(seed, *shape), full_matrices=False)
        falling = torch.arange(1, 201, dtype=torch.float64) ** -power if power else values
        deltas[name] = ((left * falling) @ right).to(dtype)
    within = 1e-4 if dtype == torch.float32 else 1e-5
    slots = _slots(deltas)
    _require_equal(slots, reference.spectral(deltas, rank=10, rtol=0.3), within)
    turned = _slots({name: each.T.contiguous() for name, each in deltas.items()})
    _require_equal({name: each.T for name, each in turned.items()}, slots, within)
    swapped = _slots({name: deltas[name] for name in "ba"})
    _require_equal({name: swapped[name] for name in "ab"}, slots, within)
    scaled = _slots(deltas | {"b": -3.0 * deltas["b"]})
    _require_equal({"a": scaled["a"], "b": scaled["b"] / -3.0}, slots, within)
    alone = _slots({"a": deltas["a"]})["a"]
    left, values, right = torch.linalg.svd(deltas["a"].double(), full_matrices=False)
    _require_equal({"a": alone}, {"a": (left[:, :10] * values[:10]) @ right[:10]}, within)
