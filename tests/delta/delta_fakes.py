"""A model in memory as `Weights`, with a layout written down by hand, and a count of what was read."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from vecsurgery.checkpoint.types import Kind, Layout, Matrix, Part, TensorInfo


@dataclass
class Fake:
    """Tensors by stored name with their layout."""

    tensors: dict[str, Tensor]
    layout: Layout
    fingerprint: str = "fake"
    config: Any = None
    reads: Counter[str] = field(default_factory=Counter)

    def read(self, tensor: str, rows: slice | Tensor | None = None) -> Tensor:
        values = self.tensors[tensor] if rows is None else self.tensors[tensor][rows]
        self.reads[tensor] += values.numel()
        return values

    def moved(self, size: float = 0.1, seed: int = 1, **changes: Tensor) -> "Fake":
        """A copy with every floating tensor moved by a random step."""
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            name: (tensor.double() + size * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
            if tensor.is_floating_point()
            else tensor.clone()
            for name, tensor in self.tensors.items()
        }
        return fake({**tensors, **changes}, tied=dict(self.layout.tied), like=self)


def fake(
    tensors: dict[str, Tensor],
    *,
    transposed: frozenset[str] = frozenset(),
    tied: dict[str, str] | None = None,
    like: Fake | None = None,
    parameters: dict[str, str] | None = None,
) -> Fake:
    """Weights over these tensors: "embed_tokens" and "wte" name embeddings, "lm_head" heads, other 2-D are matrices."""
    infos = {}
    for name, tensor in tensors.items():
        turned = name in transposed or (like is not None and name in like.layout.tensors and _turned(like, name))
        infos[name] = _info(name, tensor, turned, (parameters or {}).get(name, name))
    layout = Layout("fake", infos, {}, blocks=1, hidden=4, tied=tied or {})
    return Fake(dict(tensors), layout, fingerprint=f"fake{id(tensors)}")


def of_model(model: torch.nn.Module) -> Fake:
    """Weights over a transformers model as `save_pretrained` would store it (tied heads left out)."""
    turned = frozenset(f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D))
    tied = dict(getattr(model, "all_tied_weights_keys", {}) or {})
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    return fake({name: tensor.detach().clone() for name, tensor in tensors.items()}, transposed=turned, tied=tied)


def with_tensor(weights: Fake, name: str, tensor: Tensor) -> Fake:
    """A copy with one tensor replaced or added."""
    return fake({**weights.tensors, name: tensor}, tied=dict(weights.layout.tied), like=weights)


def _turned(weights: Fake, name: str) -> bool:
    matrix = weights.layout.tensors[name].matrix
    return matrix is not None and matrix.transposed


def _info(name: str, tensor: Tensor, transposed: bool, parameter: str) -> TensorInfo:
    shape = tuple(tensor.shape)
    kind: Kind = "block"
    matrix = None
    if "embed_tokens" in name or "wte" in name:
        kind = "embedding"
    elif "lm_head" in name:
        kind = "head"
    elif len(shape) == 2:
        kind = "matrix"
        rows = shape[1] if transposed else shape[0]
        matrix = Matrix(name, 0, name.removesuffix(".weight"), transposed, (Part("other", ((0, rows),)),))
    dtype = str(tensor.dtype).removeprefix("torch.")
    return replace(TensorInfo(name, shape, dtype, parameter, kind, layer=0), matrix=matrix)
