"""Kinds of checkpoints that are refused by name, before any tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vecsurgery.errors import UnsupportedError

from .files import Header

_QUANTISED_SUFFIXES = (
    ".qweight",
    ".qzeros",
    ".scales",
    ".g_idx",
    ".absmax",
    ".quant_map",
    ".quant_state",
    ".SCB",
    ".weight_format",
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_packed",
    ".weight_zero_point",
    "_proj_blocks",
    "_proj_scales",
)
_WEIGHT_TYPES = {"float64", "float32", "float16", "bfloat16"}


def refuse_quantised(folder: Path, config: Mapping[str, Any], headers: Mapping[str, Header]) -> None:
    """Refuse weights that are codes and scales rather than numbers.

    Raises:
        UnsupportedError: a quantization_config, or a tensor of scales, packed integers or 8-bit floats.
    """
    advice = "Use the unquantised checkpoint."
    quantization = config.get("quantization_config") or config.get("compression_config")
    if quantization:
        method = quantization.get("quant_method", "unnamed") if isinstance(quantization, dict) else quantization
        raise UnsupportedError(
            f"reading {folder}: config.json says the weights are quantised ({method}); not supported. {advice}"
        )
    for name, header in headers.items():
        if name.endswith(_QUANTISED_SUFFIXES) or ".quant_state." in name:
            raise UnsupportedError(
                f"reading {folder}: tensor {name!r} belongs to a quantised format; not supported. {advice}"
            )
        is_weight = name.endswith(".weight") and len(header.shape) >= 2
        if header.dtype.startswith("float8") or (is_weight and header.dtype not in _WEIGHT_TYPES):
            raise UnsupportedError(
                f"reading {folder}: tensor {name!r} is stored as {header.dtype} (packed or 8-bit numbers); not "
                f"supported. {advice}"
            )


def require_known(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse model types that only code inside the checkpoint could build.

    Raises:
        UnsupportedError: the installed transformers does not have this model type.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    name = config.get("model_type")
    if name in CONFIG_MAPPING:
        return
    reason = "it wants to run its own code (`auto_map`), which is never done" if config.get("auto_map") else "unknown"
    raise UnsupportedError(
        f"reading {folder / 'config.json'}: model type {name!r} is not in the installed transformers ({reason}). "
        "Use a checkpoint of a supported architecture, or a newer transformers."
    )


def require_text_decoder(config: Any) -> None:
    """Refuse models that are more or less than one causal text decoder.

    Raises:
        UnsupportedError: an encoder-decoder, or a model with other modalities beside its text decoder.
    """
    name = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedError(f"model type {name!r} is an encoder-decoder; only causal language models are supported.")
    if config.get_text_config() is not config:
        text = config.get_text_config().model_type
        raise UnsupportedError(
            f"model type {name!r} holds other modalities beside its text decoder ({text!r}); not supported. Use a "
            "checkpoint of the text decoder alone."
        )
