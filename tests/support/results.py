"""What the tests of this room ask of an output folder, and the checkpoints that they compare it with."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.workspace import Workspace
from torch import Tensor

from tests.blackbox.reference import tensors_of as tensors_of
from vecsurgery.report.record import read
from vecsurgery.surgery.api import opened

QUERY = "model.layers.1.self_attn.q_proj.weight"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but those that carry times, by relative name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("surgery.json", "report.html")
    }


def record_of(folder: Path) -> Any:
    """The record of a finished run."""
    return read(folder)


def edit_json(path: Path, **changes: Any) -> None:
    """Change keys of a JSON object; None removes one."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def describe(folder: Path, **changes: Any) -> None:
    """Change keys of delta.json, with the SHA-256 of itself that belongs to the result."""
    path = folder / "delta.json"
    content = {**json.loads(path.read_text()), **changes}
    del content["sha256"]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps({**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}))


def in_float32(workspace: Workspace) -> Workspace:
    """The checkpoints of the workspace in float32, with the same values: hand-computed results are then exact."""
    for name in ("into", "tuned", "base"):
        folder = workspace.root / name
        tensors = {key: tensor.float() for key, tensor in tensors_of(folder).items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        edit_json(folder / "config.json", dtype="float32")
    return workspace


def fed(workspace: Workspace) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(ids, positions) of the only geometry that the recipe measures."""
    (samples,) = opened(workspace.write()).samples.values()
    return [(sample.ids, sample.positions) for sample in samples.samples]


def require_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """‖found − expected‖ ≤ tolerance·‖expected‖."""
    difference = torch.linalg.vector_norm(found.double() - expected.double())
    assert difference <= tolerance * torch.linalg.vector_norm(expected.double())


def same_bits(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(
        first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8)
    )


def write_adapter(folder: Path, targets: dict[str, int], *, seed: int = 5, alpha: int = 8, wide: int = 32) -> Path:
    """A plain LoRA adapter as PEFT writes it. `targets`: module name → its number of outputs; rank 4."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, outputs in targets.items():
        prefix = f"base_model.model.{module}"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(4, wide, generator=generator) * 0.1
        tensors[f"{prefix}.lora_B.weight"] = torch.randn(outputs, 4, generator=generator) * 0.1
    save_file(tensors, folder / "adapter_model.safetensors")
    kinds = sorted({module.rpartition(".")[2] for module in targets})
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": alpha, "target_modules": kinds, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder
