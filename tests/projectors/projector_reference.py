"""The two projectors written out plainly in float64, from the definitions and without the package's kernels."""

import torch
from torch import Tensor


def second_moment(rows: Tensor) -> Tensor:
    """C = XᵀX / n."""
    return rows.double().T @ rows.double() / len(rows)


def retain_energy(delta: Tensor, moment: Tensor, strength: float) -> Tensor:
    """D (I + λC/mean(s))⁻¹: the minimum of ‖E − D‖² + λ tr(E C Eᵀ)/mean(s)."""
    width = moment.shape[0]
    system = torch.eye(width, dtype=torch.float64) + strength * moment / (moment.trace() / width)
    return torch.linalg.solve(system, delta.double().T).T


def null_space(delta: Tensor, rows: Tensor, rtol: float) -> Tensor:
    """D (I − H⁺H) with the pseudo-inverse cut at rtol·σ_max."""
    inputs = rows.double()
    width = inputs.shape[1]
    return delta.double() @ (torch.eye(width, dtype=torch.float64) - torch.linalg.pinv(inputs, rtol=rtol) @ inputs)


def null_space_by_constraints(delta: Tensor, rows: Tensor) -> Tensor:
    """The nearest E with E h = 0 for every row h, as one least-squares problem over vec(E)."""
    inputs = rows.double()
    constraints = torch.kron(torch.eye(delta.shape[0], dtype=torch.float64), inputs)
    vector = delta.double().reshape(-1)
    correction = torch.linalg.pinv(constraints, rtol=1e-9) @ (constraints @ vector)
    return (vector - correction).reshape(delta.shape)


def retention_bias(delta: Tensor, moment: Tensor) -> float:
    """tr(D C Dᵀ)."""
    return float((delta.double() @ moment @ delta.double().T).trace())


def forget_anchored(delta: Tensor, forget: Tensor, retain: Tensor, strength: float) -> Tensor:
    """D F (F + λC)⁻¹, both moments divided by their mean eigenvalue, F += 1e-6·I."""
    width = forget.shape[0]
    anchor = forget / (forget.trace() / width) + 1e-6 * torch.eye(width, dtype=torch.float64)
    penalty = retain / (retain.trace() / width)
    return torch.linalg.solve(anchor + strength * penalty, anchor @ delta.double().T).T
