"""What every room says about a tensor: matrix, part, layout, weights. Facts only, no data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["q", "k", "v", "o", "gate", "up", "down", "other"]
Kind = Literal["matrix", "block", "embedding", "head", "other"]


@dataclass(frozen=True)
class Part:
    """A run of output rows of a matrix that belongs to one role.

    `rows`: half-open intervals of output rows, in order (several where heads are interleaved, as in GPT-NeoX).
    `heads`, `head_dim`: 0 where the role has no heads. For q, k and v heads number the rows; for o the input columns.
    """

    role: Role
    rows: tuple[tuple[int, int], ...]
    heads: int = 0
    head_dim: int = 0


@dataclass(frozen=True)
class Matrix:
    """A stored 2-D parameter of a linear map in a block, seen as (out, in)."""

    tensor: str
    layer: int
    site: str
    transposed: bool
    """True where the file holds (in, out), as GPT-2's `Conv1D` does."""
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor, without its data."""

    name: str
    """Its name in the files."""
    shape: tuple[int, ...]
    dtype: str
    """torch's name without the prefix: float32, bfloat16, float16, int64, …"""
    parameter: str
    """Name of the parameter in the transformers module; equal to `name` where the module has no such parameter."""
    kind: Kind
    """matrix: a linear map of a block that has a site; block: any other tensor of a block (norms, biases, routers,
    fused experts); embedding and head: the vocabulary's tensors; other: the rest."""
    layer: int | None = None
    matrix: Matrix | None = None


@dataclass(frozen=True)
class Site:
    """The linear maps of a block that read the same input."""

    name: str
    layer: int
    width: int
    """`in`: length of the input vector."""
    tensors: tuple[str, ...]
    """Stored names of its matrices."""


@dataclass(frozen=True)
class Layout:
    """Facts about every tensor of a checkpoint, in walking order (embedding, blocks in numeric order, norm, head)."""

    architecture: str
    """`model_type` of the configuration."""
    tensors: Mapping[str, TensorInfo]
    sites: Mapping[str, Site]
    blocks: int
    hidden: int
    tied: Mapping[str, str] = field(default_factory=dict)
    """Parameter → the parameter whose storage it shares (lm_head.weight → model.embed_tokens.weight)."""

    @property
    def order(self) -> tuple[str, ...]:
        """Stored names in walking order; every pass goes through them in this order."""
        return tuple(self.tensors)

    def by_parameter(self) -> dict[str, TensorInfo]:
        """Tensors keyed by the name of their parameter in the module: how two checkpoints are matched."""
        return {info.parameter: info for info in self.tensors.values()}


class Weights(Protocol):
    """Anything that answers `read(tensor name)`: a stored checkpoint, a model in memory, or the edited model."""

    @property
    def layout(self) -> Layout: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def config(self) -> Any:
        """The transformers configuration (`PretrainedConfig`) from which the module is built."""

    def read(self, tensor: str, rows: "slice | Tensor | None" = None) -> "Tensor":
        """The tensor in its stored type and orientation, read-only; `rows`: only these along the first dimension."""
