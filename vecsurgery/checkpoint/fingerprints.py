"""The fingerprint of a model: cheap to compute, different for any two models that somebody trained.

SHA-256 over the architecture keys of the configuration and, per tensor in name order, its name, type, shape, and first
and last 4 KiB. A geometry file carries it, so that it is not used with another model by mistake.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from json.encoder import encode_basestring_ascii
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

TensorFacts = tuple[str, tuple[int, ...], memoryview]
"""Type, shape and bytes of a tensor in row-major order, of which only the edges count."""

_EDGE = 4096
_NOT_ARCHITECTURE = {
    "_name_or_path",
    "_commit_hash",
    "_attn_implementation_autoset",
    "architectures",
    "auto_map",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "finetuning_task",
    "id2label",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}
"""Keys that say how a checkpoint was made or is served, not what it computes."""


def fingerprint(config: Mapping[str, Any], names: Iterable[str], facts: Callable[[str], TensorFacts]) -> str:
    """Hexadecimal SHA-256 of a model (module docstring). `config`: as config.json has it; `facts`: of a named tensor,
    asked for one at a time."""
    digest = hashlib.sha256()
    architecture = {key: value for key, value in config.items() if key not in _NOT_ARCHITECTURE}
    digest.update(json.dumps(architecture, sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(names):
        dtype, shape, data = facts(name)
        # what encoding the three as a JSON list gives
        digest.update(f'[{encode_basestring_ascii(name)},"{dtype}",[{",".join(map(str, shape))}]]'.encode())
        digest.update(data[:_EDGE])
        digest.update(data[-_EDGE:])
    return digest.hexdigest()


def tensor_facts(tensor: Tensor) -> TensorFacts:
    """A tensor for `fingerprint`; of one that is not in main memory only the edges are fetched."""
    import torch

    from .hashes import tensor_bytes  # which imports torch

    dtype, shape = str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)
    if tensor.device.type != "cpu":
        flat = tensor.reshape(-1)
        count = _EDGE // flat.element_size()
        tensor = flat if len(flat) <= 2 * count else torch.cat([flat[:count], flat[-count:]])
    return dtype, shape, tensor_bytes(tensor.cpu())
