"""The files of a PEFT adapter: what its configuration says, and which tensors change which module."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vecsurgery.errors import InputError, UnsupportedError

_CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_KEY = re.compile(r"^(?P<module>.+)\.(?P<slot>lora_(?:embedding_)?[AB])(?:\.weight)?$")
_REFUSED = {
    "use_dora": "DoRA",
    "lora_bias": "a bias on lora_B",
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "layer_replication": "replicated layers",
    "target_parameters": "LoRA on bare parameters",
    "trainable_token_indices": "trainable tokens",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing",
    "megatron_config": "Megatron layers",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
}
"""Keys of the configuration that, when set, make the update something else than scale·B·A on the base's weights."""
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")
"""Initialisations that change the base's weights too: the adapter alone does not say by how much."""


@dataclass(frozen=True)
class LowRank:
    """D = scale·B·A of one module. `embedding`: the factors are those of the transposed table."""

    module: str
    left: str
    right: str
    scale: float
    embedding: bool


@dataclass(frozen=True)
class Whole:
    """A parameter that the adapter holds in full (modules_to_save, trained biases, saved embeddings)."""

    parameter: str
    key: str


@dataclass(frozen=True)
class Copy:
    """The base's own tensor, saved along: it changes nothing, but must be what the adapter is added to."""

    parameter: str
    key: str


Entry = LowRank | Whole | Copy


@dataclass(frozen=True)
class AdapterFile:
    """A folder with adapter_config.json and adapter_model.safetensors (or .bin, read without unpickling code).

    Errors: InputError where a file is missing, damaged or inconsistent; UnsupportedError for every kind of adapter but
    LoRA with plain factors.
    """

    folder: Path

    def __post_init__(self) -> None:
        kind = self.config.get("peft_type")
        if kind != "LORA":
            raise self._unsupported(f"peft_type is {kind!r}, expected 'LORA'")
        for key, name in _REFUSED.items():
            if self.config.get(key):
                raise self._unsupported(f"it uses {name} ({key}), expected plain LoRA factors")
        start = str(self.config.get("init_lora_weights", "")).lower()
        if start.startswith(_BASE_CHANGING):
            raise self._unsupported(
                f"init_lora_weights is {start!r}, which changed the base model's weights too; "
                "convert it to plain LoRA with PEFT's `path_initial_model_for_weight_conversion`"
            )

    @cached_property
    def config(self) -> Mapping[str, Any]:
        path = self.folder / _CONFIG
        if not path.is_file():
            model = (self.folder / "config.json").is_file()
            what = "this is a model, not an adapter" if model else f"{_CONFIG} is missing"
            advice = "; a model that was trained is named as `tuned`" if model else ""
            raise InputError(f"reading adapter {self.folder}: {what}; expected a folder saved by PEFT{advice}")
        try:
            config = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise InputError(f"reading {path}: it is no JSON text in UTF-8 ({error}); repair it") from error
        if not isinstance(config, dict):
            raise InputError(f"reading {path}: it holds a {type(config).__name__}, expected a JSON object")
        return config

    @cached_property
    def path(self) -> Path:
        """The file with the tensors."""
        for name in _FILES:
            if (self.folder / name).is_file():
                return self.folder / name
        raise InputError(f"reading adapter {self.folder}: it holds none of {', '.join(_FILES)}")

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """What the adapter changes; every one of its tensors is in an entry."""
        factors: dict[str, dict[str, str]] = {}
        saved: list[tuple[str, str]] = []
        for key in self.keys:
            if not key.startswith(_PREFIX):
                raise self._unsupported(f"tensor {key!r} is named in an unknown way, expected {_PREFIX}…")
            name = key.removeprefix(_PREFIX)
            match = _KEY.match(name)
            if match:
                factors.setdefault(match["module"], {})[match["slot"]] = key
            elif ".lora_" in name or ".token_adapter." in name:
                raise self._unsupported(f"tensor {key!r} is of an unknown kind, expected lora_A and lora_B")
            else:
                saved.append((name, key))
        entries: list[Entry] = [self._low_rank(module, slots) for module, slots in factors.items()]
        entries += [_saved(name, key, factors) for name, key in saved]
        if not entries:
            raise InputError(f"reading adapter {self.path}: it holds no tensor")
        return tuple(entries)

    def read(self, key: str, rows: slice | Tensor | None = None) -> Tensor:
        """A tensor as stored, or only these rows of it."""
        tensor: Tensor = self._tensors[key] if isinstance(self._tensors, dict) else self._tensors.get_tensor(key)
        # Views of the file: only the pages of these rows are read.
        return tensor if rows is None else tensor[rows]

    def shape(self, key: str) -> tuple[int, ...]:
        if isinstance(self._tensors, dict):
            return tuple(self._tensors[key].shape)
        return tuple(self._tensors.get_slice(key).get_shape())

    def nbytes(self, key: str) -> int:
        if isinstance(self._tensors, dict):
            return int(self._tensors[key].nbytes)
        bits = re.search(r"\d+", self._tensors.get_slice(key).get_dtype())
        return math.prod(self.shape(key)) * (int(bits[0]) // 8 if bits else 1)

    @cached_property
    def keys(self) -> Sequence[str]:
        return tuple(sorted(self._tensors.keys()))

    @cached_property
    def _tensors(self) -> Any:
        """An open safetensors file, or a dictionary of tensors."""
        try:
            if self.path.suffix == ".safetensors":
                return safe_open(self.path, "pt")
            return torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except (SafetensorError, UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
            # Only the first line: torch's next ones tell how to run the code in the file.
            raise InputError(
                f"reading {self.path}: the file cannot be read as tensors alone ({str(error).splitlines()[0]}); "
                "fetch it again, or save the adapter as safetensors"
            ) from error

    def _low_rank(self, module: str, slots: Mapping[str, str]) -> LowRank:
        embedding = any(slot.startswith("lora_embedding") for slot in slots)
        left, right = ("lora_embedding_B", "lora_embedding_A") if embedding else ("lora_B", "lora_A")
        if set(slots) != {left, right}:
            raise InputError(
                f"reading adapter {self.path}: module {module!r} has {', '.join(sorted(slots))}, expected both "
                f"{right} and {left}"
            )
        shapes = self.shape(slots[left]), self.shape(slots[right])
        if any(len(shape) != 2 for shape in shapes):
            raise self._unsupported(f"module {module!r} has factors of shape {shapes}, expected matrices")
        rank = int(self._pattern("rank_pattern", module, self.config.get("r")))
        if not shapes[0][1] == shapes[1][0] == rank:
            raise InputError(
                f"reading adapter {self.path}: module {module!r} has factors {shapes[0]} and {shapes[1]}, expected "
                f"rank {rank} as {_CONFIG} says"
            )
        alpha = float(self._pattern("alpha_pattern", module, self.config.get("lora_alpha")))
        scale = alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)
        return LowRank(module, slots[left], slots[right], scale, embedding)

    def _pattern(self, table: str, module: str, default: Any) -> Any:
        """The module's own value: the first pattern that matches the end of its dotted name, as PEFT has it."""
        for pattern, value in (self.config.get(table) or {}).items():
            try:
                matches = re.match(rf"(.*\.)?({pattern})$", module)
            except re.error as error:
                raise InputError(
                    f"reading {self.folder / _CONFIG}: {table} holds {pattern!r}, no regular expression: {error}"
                ) from error
            if matches:
                return value
        if default is None:
            raise InputError(f"reading {self.folder / _CONFIG}: r or lora_alpha is missing")
        return default

    def _unsupported(self, what: str) -> UnsupportedError:
        return UnsupportedError(f"reading adapter {self.folder}: {what}; merge it into its base with PEFT first")


def _saved(name: str, key: str, factors: Mapping[str, object]) -> Whole | Copy:
    """What a tensor that is no factor stands for: a trained parameter, or the base's own."""
    parameter = name.replace(".base_layer.", ".").replace(".original_module.", ".")
    parameter = re.sub(r"\.modules_to_save\.", ".", parameter)
    copied = ".original_module." in name or (
        parameter.endswith(".weight") and parameter.removesuffix(".weight") in factors
    )
    return Copy(parameter, key) if copied else Whole(parameter, key)
