"""What an inspection says of a delta equals plain numpy and scipy computations on whole tensors."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import save_file
from support import models
from support.results import QUERY, tensors_of, write_adapter
from torch import Tensor

import vecsurgery
from vecsurgery.checkpoint import Stored
from vecsurgery.delta.reading import row_chunks
from vecsurgery.geometry import Geometry
from vecsurgery.linalg import spectra
from vecsurgery.report.inspection import Change, Inspection

DOWN = "model.layers.0.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"


def _delta(root: Path, name: str, tensor: str) -> np.ndarray[Any, Any]:
    tuned, base = (tensors_of(root / folder)[tensor].double() for folder in (name, "base"))
    return (tuned - base).numpy()


def _of(found: Inspection, delta: str, tensor: str) -> Change:
    (change,) = [each for each in found.of_delta(delta) if each.tensor == tensor]
    return change


def _floor(weight: Tensor, bits: int = 7) -> float:
    rms = float(weight.double().square().mean().sqrt())
    spacing = 2.0 ** (math.floor(math.log2(rms)) - bits)
    return (math.sqrt(weight.shape[0]) + math.sqrt(weight.shape[1])) * spacing / math.sqrt(12)


@pytest.mark.parametrize("tensor", [QUERY, DOWN])
def test_norms_and_spectra_of_a_matrix_are_those_of_numpy(root: Path, found: Inspection, tensor: str) -> None:
    delta, weight = _delta(root, "first", tensor), tensors_of(root / "base")[tensor]
    values = np.linalg.svd(delta, compute_uv=False)
    floor = _floor(weight)
    change = _of(found, "first", tensor)
    assert change.shape == delta.shape
    assert change.squared_norm == pytest.approx((delta**2).sum())
    assert change.squared_base == pytest.approx(float(weight.double().square().sum()))
    assert change.changed == np.count_nonzero(delta)
    spectrum = change.spectrum
    assert spectrum is not None
    assert spectrum.values == pytest.approx(values[:5].tolist())
    shares = values / values.sum()
    assert spectrum.effective_rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
    assert spectrum.floor == pytest.approx(floor)
    assert (spectrum.rank, spectrum.rank_known, spectrum.full) == (int((values > floor).sum()), True, min(delta.shape))
    assert spectrum.energy_above == pytest.approx((values[values > floor] ** 2).sum())
    json_change = found.to_dict()["deltas"]["first"]["tensors"][tensor]
    assert json_change["stable_rank"] == pytest.approx((values**2).sum() / values[0] ** 2)
    assert json_change["leading"] == pytest.approx((values[:5] ** 2).sum() / (values**2).sum())
    assert json_change["relative"] == pytest.approx(np.linalg.norm(delta) / float(weight.double().norm()))


def test_sums_by_role_and_layer_are_over_all_their_tensors(root: Path, found: Inspection) -> None:
    names = list(tensors_of(root / "base"))
    parts = {"q": "q_proj", "down": "down_proj", "embedding": "embed_tokens"}
    for role, part in parts.items():
        deltas = np.concatenate([_delta(root, "second", name).ravel() for name in names if part in name])
        weights = torch.cat([tensors_of(root / "base")[name].double().flatten() for name in names if part in name])
        total = found.by_role("second")[role]
        assert total.norm == pytest.approx(np.linalg.norm(deltas))
        assert total.relative == pytest.approx(np.linalg.norm(deltas) / float(weights.norm()))
        assert total.changed == pytest.approx(np.count_nonzero(deltas) / deltas.size)
    layer = np.concatenate([_delta(root, "second", name).ravel() for name in names if ".layers.1." in name])
    assert found.by_layer("second")[1].norm == pytest.approx(np.linalg.norm(layer))
    everything = np.concatenate([_delta(root, "second", name).ravel() for name in names])
    assert found.total("second").norm == pytest.approx(np.linalg.norm(everything))
    assert found.by_role("first")["embedding"].norm == 0.0
    medians = [_of(found, "first", f"model.layers.{layer}.self_attn.q_proj.weight").spectrum for layer in range(3)]
    ranks = sorted(each.effective_rank for each in medians if each is not None and each.effective_rank is not None)
    assert found.by_role("first")["q"].effective_rank == ranks[1]


@pytest.mark.parametrize("tensor", [QUERY, DOWN])
def test_angles_cosine_and_interference_are_those_of_scipy(root: Path, found: Inspection, tensor: str) -> None:
    deltas = [_delta(root, name, tensor) for name in ("first", "second")]
    (pair,) = [each for each in found.pairs if each.tensor == tensor]
    lefts, values, rights = zip(*(np.linalg.svd(delta) for delta in deltas), strict=True)
    sides = ([u[:, :5] for u in lefts], [v[:5].T for v in rights])
    for angles, (one, other) in zip((pair.output_angles, pair.input_angles), sides, strict=True):
        assert angles == pytest.approx(sorted(scipy.linalg.subspace_angles(one, other)), abs=1e-9)
    assert pair.chance == (5 / deltas[0].shape[0], 5 / deltas[0].shape[1])
    product = float((deltas[0] * deltas[1]).sum())
    told = found.to_dict()["pairs"][0]["tensors"][tensor]
    assert told["cosine"] == pytest.approx(product / np.prod([np.linalg.norm(delta) for delta in deltas]), abs=1e-8)
    overlap = np.linalg.norm(sides[1][0].T @ sides[1][1]) ** 2 / 5
    assert told["input_overlap"] == pytest.approx(overlap)
    left, right = (np.concatenate(side, axis=1) for side in sides)
    middle = np.diag(np.concatenate([each[:5] for each in values]))
    sti = np.abs((left.T @ left - np.eye(10)) @ middle @ (right.T @ right - np.eye(10))).sum() / 90
    (conflict,) = [each for each in found.conflicts if each.tensor == tensor]
    assert conflict.value == pytest.approx(sti)


@pytest.mark.parametrize("pieces", [1, 7], ids=["whole", "in pieces"])
def test_what_is_no_matrix_is_compared_too_by_its_cosine_alone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int
) -> None:
    models.perturbed(root / "base", tmp_path / "third", seed=4)
    monkeypatch.setattr("vecsurgery.delta.reading.row_chunks", partial(row_chunks, size=4 * 32 * 160 // pieces))
    found = vecsurgery.inspect([str(root / "second"), str(tmp_path / "third")], base=root / "base")
    base, second, third = (tensors_of(folder) for folder in (root / "base", root / "second", tmp_path / "third"))
    deltas = [
        {name: (tuned[name].double() - base[name].double()).numpy() for name in base} for tuned in (second, third)
    ]
    told = found.to_dict()["pairs"][0]
    for name in (EMBEDDING, NORM, QUERY):
        one, other = (delta[name] for delta in deltas)
        expected = float((one * other).sum()) / (np.linalg.norm(one) * np.linalg.norm(other))
        assert told["tensors"][name]["cosine"] == pytest.approx(expected, rel=1e-6)
    assert told["tensors"][EMBEDDING]["input_overlap"] is None
    assert told["tensors"][EMBEDDING]["output_angles"] == []
    one, other = (np.concatenate([values.ravel() for values in delta.values()]) for delta in deltas)
    whole = found.total_pair(("second", "third"))
    assert whole.cosine == pytest.approx(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)), rel=1e-6)
    assert whole.tensors == len(base)
    assert "embedding" in told["roles"]


def test_a_tensor_that_only_one_delta_changes_is_no_pair(found: Inspection) -> None:
    assert EMBEDDING not in {each.tensor for each in found.pairs}
    assert QUERY in {each.tensor for each in found.pairs}


def test_the_share_in_a_geometry_and_the_bias_are_those_of_its_directions(root: Path, found: Inspection) -> None:
    delta, weight = _delta(root, "first", QUERY), tensors_of(root / "base")[QUERY].double().numpy()
    subspace = Geometry.open(root / "retain.safetensors").subspace("model.layers.1.self_attn.q_proj")
    directions, energies = subspace.directions.double().numpy(), subspace.energies.numpy()
    needed = int(np.argmax(np.cumsum(energies) >= 0.9 * energies.sum())) + 1
    within = _of(found, "first", QUERY).within["retain"]
    assert (within.directions, within.width) == (needed, 32)
    assert within.share == pytest.approx(
        np.linalg.norm(delta @ directions[:, :needed]) ** 2 / (delta**2).sum(), rel=1e-5
    )
    moment = directions @ np.diag(energies) @ directions.T
    biases = [float(np.trace(each @ moment @ each.T)) for each in (delta, weight)]
    assert (within.bias, within.weight_bias) == pytest.approx(biases, rel=1e-5)
    total = found.by_role("first")["q"].within["retain"]
    assert total.matrices == 3
    assert total.bias == pytest.approx(
        sum(each.within["retain"].bias for each in found.of_delta("first") if each.role == "q")
    )
    assert [note for note in found.notes if "'later'" in note]


def test_an_adapter_is_looked_at_as_its_product_and_never_formed(
    root: Path, targets: dict[str, int], tmp_path: Path
) -> None:
    base = tensors_of(root / "base")
    tensors = tensors_of(root / "adapter")
    dense = {name: tensor.float() for name, tensor in base.items()}
    for module in targets:
        left, right = (tensors[f"base_model.model.{module}.lora_{side}.weight"] for side in "BA")
        dense[f"{module}.weight"] += 2.0 * left @ right
    models.perturbed(root / "base", tmp_path / "dense", seed=0, only="nothing is called so")
    save_file(dense, tmp_path / "dense" / "model.safetensors", metadata={"format": "pt"})
    named = {"skill": str(root / "adapter"), "dense": str(tmp_path / "dense")}
    found = vecsurgery.inspect(named, base=root / "base", top=3, geometry={"g": root / "retain.safetensors"})
    for module in targets:
        factored, whole = (_of(found, name, f"{module}.weight") for name in named)
        assert (factored.factored, whole.factored) == (True, False)
        assert factored.squared_norm == pytest.approx(whole.squared_norm, rel=1e-4)
        assert factored.spectrum is not None
        assert whole.spectrum is not None
        assert factored.spectrum.values == pytest.approx(whole.spectrum.values, rel=1e-3)
        assert factored.within["g"].share == pytest.approx(whole.within["g"].share, rel=1e-3)
        rounded = (dense[f"{module}.weight"].to(torch.bfloat16) != base[f"{module}.weight"]).sum()
        assert factored.changed == int(rounded)
        assert (factored.dtype, whole.dtype) == ("bfloat16", "bfloat16")  # of the base, where tuned is float32
    assert found.total_pair(("skill", "dense")).cosine == pytest.approx(1.0, abs=1e-4)
    assert found.by_role("skill")["q"].relative == pytest.approx(found.by_role("dense")["q"].relative, rel=1e-4)
    assert any("nearly parallel" in line for line in found.warnings)
    alone = vecsurgery.inspect(f"{root / 'base'}+{root / 'adapter'}", top=3)
    (name,) = alone.names
    assert alone.kind == "deltas"
    assert alone.total(name).norm == pytest.approx(found.total("skill").norm)


def test_two_adapters_are_set_against_each_other_by_their_factors(
    root: Path, targets: dict[str, int], tmp_path: Path
) -> None:
    write_adapter(tmp_path / "other", targets)
    file = tmp_path / "other" / "adapter_model.safetensors"
    save_file(
        {name: tensor * (1.0 if "lora_A" in name else -1.0) for name, tensor in tensors_of(file.parent).items()}, file
    )
    found = vecsurgery.inspect([str(root / "adapter"), str(tmp_path / "other")], base=root / "base", modules=["q"])
    assert found.total_pair(("adapter", "other")).cosine == pytest.approx(-1.0)
    assert any("nearly opposite" in line for line in found.warnings)


def test_a_lone_model_shows_its_weights(root: Path) -> None:
    found = vecsurgery.inspect(root / "base", top=4)
    weight = tensors_of(root / "base")[QUERY].double().numpy()
    change = _of(found, "base", QUERY)
    assert (found.kind, change.squared_base, change.changed) == ("weights", None, None)
    assert change.spectrum is not None
    assert change.spectrum.values == pytest.approx(np.linalg.svd(weight, compute_uv=False)[:4].tolist())
    assert found.total("base").relative is None
    assert "relative" not in found.text()


def test_a_geometry_file_shows_the_energies_of_its_sites(root: Path) -> None:
    found = vecsurgery.inspect(root / "retain.safetensors", top=3)
    opened = Geometry.open(root / "retain.safetensors")
    assert [each.site for each in found.sites] == list(opened.sites)
    for each in found.sites:
        energies = opened.subspace(each.site).energies.numpy()
        shares = energies[energies > 0] / energies.sum()
        assert each.energies == pytest.approx(energies[:3].tolist())
        assert each.effective_rank == pytest.approx(math.exp(-(shares * np.log(shares)).sum()))
        assert each.needed == int(np.argmax(np.cumsum(energies) >= 0.9 * energies.sum())) + 1
    assert {each.role for each in found.sites} == {"q+k+v", "o", "gate+up", "down"}
    assert "q+k+v" in found.text()


def test_every_tensor_is_read_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[str, str]] = []
    original = Stored.read

    def read(self: Stored, tensor: str, rows: slice | Tensor | None = None) -> Tensor:
        reads.append((self.folder.name, tensor))
        return original(self, tensor, rows)

    for folder in ("base", "first", "second"):
        Stored(root / folder).layout  # noqa: B018 - settles tying, which compares tensors
    monkeypatch.setattr(Stored, "read", read)
    monkeypatch.setattr("vecsurgery.checkpoint.stored.fingerprint", lambda *args: "one")
    vecsurgery.inspect([root / "first", root / "second"], base=root / "base", modules=["q", "down"])
    assert len(reads) == len(set(reads)) == 3 * 2 * 3


def test_blocks_and_roles_are_selected_and_sampled_evenly(root: Path) -> None:
    found = vecsurgery.inspect(root / "first", base=root / "base", layers="1-2", modules=["k", "up"])
    assert {(each.layer, each.role) for each in found.changes} == {(1, "k"), (2, "k"), (1, "up"), (2, "up")}
    assert found.looked == 4
    for limit, layers in ((1, {1}), (2, {0, 2}), (5, {0, 1, 2})):
        sampled = vecsurgery.inspect(root / "first", base=root / "base", modules=["q"], limit=limit)
        assert {each.layer for each in sampled.changes} == layers
    assert "embedding" not in vecsurgery.inspect(root / "first", base=root / "base", limit=1).by_role("first")


@pytest.mark.parametrize(("architecture", "role"), [("gpt2", "q+k+v"), ("phi3", "gate+up")])
def test_fused_and_transposed_matrices_are_seen_as_outputs_by_inputs(
    architecture: str, role: str, tmp_path: Path
) -> None:
    base = models.checkpoint(tmp_path / "base", architecture, seed=1)
    models.perturbed(base, tmp_path / "tuned", seed=2)
    found = vecsurgery.inspect(tmp_path / "tuned", base=base, layers=0)
    (change,) = [each for each in found.changes if each.role == role]
    delta = _delta(tmp_path, "tuned", change.tensor)
    assert change.shape == (delta.shape[::-1] if architecture == "gpt2" else delta.shape)
    assert change.spectrum is not None
    assert change.spectrum.values[0] == pytest.approx(np.linalg.svd(delta, compute_uv=False)[0])


def test_large_matrices_say_that_their_rank_is_at_least_so_much(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "WHOLE_SIZE", 8)
    found = vecsurgery.inspect(root / "first", base=root / "base", modules=["q"], top=4)
    spectrum = _of(found, "first", QUERY).spectrum
    assert spectrum is not None
    assert (spectrum.rank, spectrum.rank_known, spectrum.effective_rank) == (4, False, None)
    assert "≥ 4" in found.text()
    whole = vecsurgery.inspect(root / "first", base=root / "base", modules=["q"], top=4, exact=True)
    exact = _of(whole, "first", QUERY).spectrum
    assert exact is not None
    assert exact.rank_known
    assert exact.values == pytest.approx(spectrum.values, rel=1e-5)


def test_a_delta_below_the_rounding_of_its_type_is_told(root: Path, tmp_path: Path) -> None:
    base = models.checkpoint(tmp_path / "base", seed=1, dtype=torch.bfloat16)
    models.perturbed(base, tmp_path / "hardly", seed=2, size=1e-4, only="proj")
    found = vecsurgery.inspect(tmp_path / "hardly", base=base, limit=1)
    assert any("noise floor of bfloat16" in line for line in found.warnings)
    same = vecsurgery.inspect({"same": str(base)}, base=base, limit=1)
    assert any("changes nothing" in line for line in same.warnings)
    assert not vecsurgery.inspect(root / "first", base=root / "base", limit=1).warnings


def test_a_delta_that_lies_inside_a_geometry_is_told(root: Path, tmp_path: Path) -> None:
    opened = Geometry.open(root / "retain.safetensors")
    direction = opened.subspace("model.layers.1.self_attn.q_proj").directions[:, :1]
    tensors = {name: tensor.float() for name, tensor in tensors_of(root / "base").items()}
    tensors[QUERY] = tensors[QUERY] + torch.ones(32, 1) @ direction.T
    models.perturbed(root / "base", tmp_path / "inside", seed=0, only="nothing is called so")
    save_file(tensors, tmp_path / "inside" / "model.safetensors", metadata={"format": "pt"})
    found = vecsurgery.inspect(
        tmp_path / "inside", base=root / "base", geometry=[f"kept={root / 'retain.safetensors'}"], energy=0.5
    )
    assert found.total("inside").within["kept"].share == pytest.approx(1.0, abs=1e-3)
    assert any("almost wholly inside geometry 'kept'" in line for line in found.warnings)


def test_models_in_memory_are_looked_at(root: Path) -> None:
    edited = vecsurgery.edit(into=str(root / "base"), deltas={"x": str(root / "first")}, dtype="float32")
    found = vecsurgery.inspect({"edited": edited}, base=root / "base", modules=["q"])
    assert found.total("edited").norm == pytest.approx(
        vecsurgery.inspect(root / "first", base=root / "base", modules=["q"]).total("first").norm, rel=1e-5
    )
