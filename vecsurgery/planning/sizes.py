"""Bytes of the numbers that are stored: by their type, and by the type that the recipe asks for."""

from vecsurgery.checkpoint.types import TensorInfo

_SIZES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2}
"""Bytes of one element; every other type that checkpoints hold has one byte."""


def item_size(dtype: str) -> int:
    """Bytes of one element of a stored type."""
    return _SIZES.get(dtype, 1)


def output_type(info: TensorInfo, dtype: str) -> str:
    """The type a tensor is written in: floating ones follow the recipe's `output.dtype`."""
    floating = info.dtype in ("float64", "float32", "float16", "bfloat16")
    return dtype if dtype != "stored" and floating else info.dtype


def number_size(dtype: str) -> int:
    """Bytes of a number of factors under the recipe's `output.dtype`: float32 where it says "stored"."""
    return item_size("float32" if dtype == "stored" else dtype)
