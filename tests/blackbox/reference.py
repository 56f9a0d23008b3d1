"""An independent computation of what a run should write: whole models, hooks, float64, no code of the package."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint folder."""
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(file))
    return found


def recorded_inputs(folder: Path, samples: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, Tensor]:
    """Inputs of every linear map at the selected positions: tensor name → (n, in), from a full float32 model.

    `samples`: (token ids, positions) pairs, fed one by one.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    rows: dict[str, list[Tensor]] = {}
    current: list[int] = []

    def hook(name: str):
        def keep(_module: object, args: tuple[Tensor, ...]) -> None:
            rows.setdefault(name, []).append(args[0].reshape(-1, args[0].shape[-1])[current].double())

        return keep

    handles = [
        module.register_forward_pre_hook(hook(f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
    ]
    with torch.no_grad():
        for ids, positions in samples:
            current[:] = positions
            model(input_ids=torch.tensor([list(ids)]))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in rows.items()}


def delta(tuned: Tensor, base: Tensor, *, transposed: bool) -> Tensor:
    """tuned − base in float64, as (out, in)."""
    difference = tuned.double() - base.double()
    return difference.T if transposed else difference


def _at_share(edited: Callable[[float], Tensor], change: Tensor, moment: Tensor, keep: float) -> Tensor:
    """edited(λ) at the λ, found by bisection, where its bias tr[E C Eᵀ] is `keep` times that of the change."""

    def bias(candidate: Tensor) -> float:
        return float(torch.trace(candidate @ moment @ candidate.T))

    target = keep * bias(change)
    low, high = 0.0, 1.0
    while bias(edited(high)) > target:
        high *= 2.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if bias(edited(middle)) > target else (low, middle)
    return edited(high)


def retain_energy(change: Tensor, inputs: Tensor, keep: float, rank: int) -> Tensor:
    """argmin_E ‖E − D‖² + λ Σ_{i≤r} w_i ‖E v_i‖², λ such that Σ s_i ‖D′ v_i‖² = keep · Σ s_i ‖D v_i‖², by bisection.

    The minimiser is D (I + λ V_r diag(w) V_rᵀ)⁻¹, computed as that dense inverse.
    """
    width = inputs.shape[1]
    _, values, directions = torch.linalg.svd(inputs, full_matrices=False)
    energies = values**2 / len(inputs)
    penalty = directions[:rank].T * (energies[:rank] * width / energies.sum()) @ directions[:rank]
    moment = inputs.T @ inputs / len(inputs)
    identity = torch.eye(width, dtype=torch.float64)

    def edited(strength: float) -> Tensor:
        return change @ torch.linalg.inv(identity + strength * penalty)

    return _at_share(edited, change, moment, keep)


def forget_anchored(change: Tensor, inputs: Tensor, forgotten: Tensor, keep: float) -> Tensor:
    """argmin_E tr[(E−D) F (E−D)ᵀ] + λ tr[E C Eᵀ], λ such that tr[D′ C D′ᵀ] = keep · tr[D C Dᵀ], by bisection.

    The minimiser is D F (F + λC)⁻¹, computed by solving that dense system; F and C are divided by their mean
    eigenvalue and F += 1e-6·I.
    """
    width = inputs.shape[1]
    moment, anchor = (rows.T @ rows * (width / rows.square().sum()) for rows in (inputs, forgotten))
    anchor = anchor + 1e-6 * torch.eye(width, dtype=torch.float64)

    def edited(strength: float) -> Tensor:
        return torch.linalg.solve(anchor + strength * moment, anchor @ change.T).T

    return _at_share(edited, change, moment, keep)


def null_space(change: Tensor, inputs: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """D (I − V_r V_rᵀ) with the leading right singular vectors of the inputs; (D⊥, V_r)."""
    _, _, directions = torch.linalg.svd(inputs, full_matrices=False)
    kept = directions[:rank].T
    return change - (change @ kept) @ kept.T, kept


def rank_at(inputs: Tensor, rtol: float) -> int:
    """Singular values above rtol·σ_max."""
    values = torch.linalg.svdvals(inputs)
    return int((values > rtol * values[0]).sum())


def stored_rank(inputs: Tensor) -> int:
    """Directions with s_i > in·2⁻²³·s_1: what the default `energy: 1` means."""
    energies = torch.linalg.svdvals(inputs) ** 2
    return int((energies > inputs.shape[1] * 2.0**-23 * energies[0]).sum())


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Spacing of `dtype` at each value, float64."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(values.double().abs().clamp(min=info.tiny))
    return torch.ldexp(torch.full_like(values.double(), info.eps), exponent - 1)
