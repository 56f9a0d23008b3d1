"""Controls that experiments share: geometries that say nothing about the text they were measured on."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


def random_geometry(measured: Path, path: Path, seed: int) -> Path:
    """The energies of a geometry file along one draw of random orthonormal directions, as the file `path`.

    What any subspace of equal rank would do. Made once.
    """
    if path.exists():
        return path
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(measured)
    for name, tensor in tensors.items():
        if name.endswith(".directions"):
            directions, _ = torch.linalg.qr(torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
            tensors[name] = directions.to(tensor.dtype).contiguous()
    with safe_open(measured, framework="pt") as opened:
        metadata = opened.metadata()
    unfinished = path.with_suffix(".partial")
    save_file(tensors, unfinished, metadata)
    unfinished.rename(path)
    return path
