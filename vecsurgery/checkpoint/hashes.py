"""SHA-256 of files and of tensors' bytes, streamed: nothing is held that was not held before."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

_PIECE = 1 << 24
"""Bytes read at a time."""


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a CPU tensor in row-major order, without a copy where it is contiguous already.

    Every type that safetensors knows is passed through unchanged, float8 and bool included. The tensor must stay alive
    and unchanged while the view is used.
    """
    if tensor.requires_grad or tensor.is_conj() or tensor.is_neg():
        tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.ndim and tensor.is_contiguous() and tensor.numel():
        return tensor.view(torch.uint8).numpy().data.cast("B")
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 (hexadecimal) of a tensor's bytes; its type and shape do not enter."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file, read in pieces."""
    digest = hashlib.sha256()
    buffer = bytearray(_PIECE)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(memoryview(buffer)[:count])
    return digest.hexdigest()
