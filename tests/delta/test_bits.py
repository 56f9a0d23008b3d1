"""Whatever bits two tensors and a delta have, the patch gives back the one that was meant."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vecsurgery.delta.bits import INTEGERS, added, bits, differing, patched, product, removed

TYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


@st.composite
def triples(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """W, W′ and D of any bit patterns: subnormal numbers, zeros of both signs, infinities and NaN among them."""
    dtype, values = draw(st.sampled_from(TYPES)), draw(st.sampled_from(TYPES))
    seed, count = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 40))
    generator = np.random.default_rng(seed)

    def any_bits(kind: torch.dtype) -> Tensor:
        return torch.from_numpy(generator.integers(0, 256, count * kind.itemsize, dtype=np.uint8)).view(kind)

    weight, delta = any_bits(dtype), any_bits(values)
    near = draw(st.booleans())
    target = added(weight, delta) if near else any_bits(dtype)
    return weight, target, delta


@settings(max_examples=150, deadline=None)
@given(triples())
def test_a_patched_sum_has_the_bits_that_were_meant_both_ways(found: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, target, delta = found
    there = patched(added(weight, delta), *differing(added(weight, delta), target))
    assert torch.equal(bits(there), bits(target))
    back = patched(removed(there, delta), *differing(removed(there, delta), weight))
    assert torch.equal(bits(back), bits(weight))
    everywhere = torch.bitwise_xor(bits(added(weight, delta)), bits(target))
    assert torch.equal(bits(patched(added(weight, delta), None, everywhere)), bits(target))


def test_nothing_is_patched_where_the_sum_is_exact() -> None:
    weight, delta = torch.tensor([1.0, 2.0, -4.0]), torch.tensor([0.5, -2.0, 0.25])
    places, change = differing(removed(added(weight, delta), delta), weight)
    assert len(places) == len(change) == 0


def test_no_delta_leaves_every_bit() -> None:
    weight = torch.tensor([-0.0, float("nan"), 3.0])
    assert torch.equal(bits(added(weight, None)), bits(weight))
    assert torch.equal(bits(removed(weight, None)), bits(weight))


@pytest.mark.parametrize("dtype", TYPES)
def test_an_entry_of_the_delta_that_is_zero_leaves_every_bit(dtype: torch.dtype) -> None:
    weight = torch.tensor([-0.0, 0.0, float("nan"), -3.0] * 2).to(dtype)
    delta = torch.tensor([0.0] * 4 + [-0.0] * 4)
    for sum_of in (added, removed):
        assert torch.equal(bits(sum_of(weight, delta)), bits(weight))
        assert torch.equal(bits(sum_of(weight, delta)), bits(sum_of(weight, None)))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int8, torch.int64])
def test_integers_are_patched_too(dtype: torch.dtype) -> None:
    first, second = torch.tensor([0, 1, 1]).to(dtype), torch.tensor([1, 1, 0]).to(dtype)
    places, change = differing(first, second)
    assert places.tolist() == [0, 2]
    assert change.dtype == (torch.uint8 if dtype == torch.bool else INTEGERS[dtype.itemsize])
    assert torch.equal(patched(first, places, change), second)


def test_a_product_is_summed_in_order_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(700, 5, generator=generator), torch.randn(5, 900, generator=generator)
    expected = np.zeros((700, 900), dtype=np.float32)
    for index in range(5):
        expected += left.numpy()[:, index, None] * right.numpy()[index]
    assert np.array_equal(product(left, right).numpy(), expected)
    exact = left.double() @ right.double()
    assert float((product(left, right) - exact).abs().max()) < 1e-5
