"""The noise that rounding to the storage type left in a delta, estimated from the type and the size of the weights."""

import math
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor

from vecsurgery import linalg
from vecsurgery.delta import Delta, DeltaSource, Factored


def stored_types(source: DeltaSource, parameter: str) -> set[torch.dtype]:
    """The floating types of the tensors that a delta was made from; empty for an adapter's factors."""
    names = {weights.layout.tensors[tensor].dtype for weights, tensor in source.stored(parameter)}
    types = {getattr(torch, name) for name in names}
    return {each for each in types if each.is_floating_point}


def with_noise(delta: Delta, weight: Tensor, types: Collection[torch.dtype]) -> Delta:
    """The delta with the deviation of its rounding errors: ulp(rms W)/√12 of its coarsest stored type.

    weight: W of `into`; its root mean square stands for that of the tuned weights, which were rounded. A factored delta
    was never rounded on a grid of weights, and comes back as it is.
    """
    if isinstance(delta, Factored) or not types:
        return delta
    scale = float(torch.linalg.vector_norm(weight, dtype=torch.float32)) / max(1, weight.numel()) ** 0.5
    if not math.isfinite(scale):
        return delta
    coarsest = max(types, key=lambda each: torch.finfo(each).eps)
    return replace(delta, noise=linalg.rounding_noise(scale, coarsest))
