"""Checkpoint to checkpoint, every supported architecture, against an independent float64 computation."""

from pathlib import Path

import pytest
import torch
from support import models
from transformers import AutoModelForCausalLM

import vecsurgery
from tests.blackbox import reference
from vecsurgery.editing.edited import Edited
from vecsurgery.editing.sites import SiteReader
from vecsurgery.planning.plans import make_plan
from vecsurgery.surgery.api import opened
from vecsurgery.surgery.geometries import measured

TRANSPOSED = {"gpt2"}
ARCHITECTURES = sorted({**models.CONFIGS, **models.MIXED})
KEEP = 0.1
RTOL = 0.1
RETAIN = """
into: {into}
deltas: {{change: {{tuned: {tuned}}}}}
geometry: {{retain: {{data: {data}}}}}
steps: [{{project: retain_energy, geometry: retain, keep: 0.1}}]
gates: []
output: {{shard_size: 20000}}
"""
ANCHORED = """
into: {into}
deltas: {{change: {{tuned: {tuned}}}}}
geometry: {{retain: {{data: {data}}}, forget: {{data: {forget}}}}}
steps: [{{project: retain_energy, geometry: retain, forget: forget, keep: 0.1}}]
gates: []
"""
RAIN = """
into: {into}
deltas: {{instruct: {{tuned: {tuned}, base: {base}}}}}
geometry: {{thinking: {{data: {data}, template: none, tokens: {{{rule}}}}}}}
steps: [{{project: null_space, geometry: thinking, rtol: 0.1}}]
gates: []
"""
BETWEEN = 'between: ["<think>", "</think>"]'
AROUND = 'around: ["<think>", "</think>"], before: 1'


def _case(tmp_path: Path, architecture: str, dtype: torch.dtype, *, base: bool) -> dict[str, Path]:
    """Checkpoints of one family whose shards are in shuffled order."""
    into = models.checkpoint(tmp_path / "into", architecture, seed=1, dtype=dtype)
    folders = {"into": into, "tuned": models.perturbed(into, tmp_path / "tuned", seed=2)}
    if base:
        folders["base"] = models.perturbed(into, tmp_path / "base", seed=3)
    if dtype is torch.bfloat16:
        for number, folder in enumerate(folders.values()):
            models.shuffle_shards(folder, seed=number)
    return folders


Fed = list[tuple[tuple[int, ...], tuple[int, ...]]]
"""Ids and selected positions of each sample."""


def _run(tmp_path: Path, text: str) -> tuple[Path, Edited, Fed]:
    """The finished output, the edited weights behind it, and the samples that were fed."""
    out, edited, fed = _run_with_geometries(tmp_path, text)
    (samples,) = fed.values()
    return out, edited, samples


def _run_with_geometries(tmp_path: Path, text: str) -> tuple[Path, Edited, dict[str, Fed]]:
    """The same, with the samples of each geometry."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    out = tmp_path / "out"
    vecsurgery.run(recipe, out)
    inputs = opened(recipe)
    plan = make_plan(inputs)
    geometries = measured(plan, out / "surgery")
    edited = Edited(
        inputs.into, inputs.deltas, inputs.recipe.steps, inputs.projectors, SiteReader(geometries, inputs.into.layout)
    )
    fed = {
        name: [(sample.ids, sample.positions) for sample in samples.samples] for name, samples in inputs.samples.items()
    }
    return out, edited, fed


def _close(edited: torch.Tensor, expected: torch.Tensor, within: float = 1e-5) -> bool:
    return bool(torch.linalg.vector_norm(edited.double() - expected) <= within * torch.linalg.vector_norm(expected))


def _require_stored(stored: torch.Tensor, weight: torch.Tensor, change: torch.Tensor) -> None:
    """Within one unit in the last place of the exact sum W + D′ (of its larger term, where the two cancel)."""
    exact = weight.double() + change
    place = reference.ulp(torch.maximum(exact.abs(), torch.maximum(weight.double().abs(), change.abs())), stored.dtype)
    noise = 1e-5 * change.square().mean().sqrt() if stored.dtype == torch.float32 else 0.0
    assert bool(((stored.double() - exact).abs() <= place + noise).all())


def _require_loads(out: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    with torch.no_grad():
        assert bool(torch.isfinite(model(input_ids=torch.arange(9, 30)[None]).logits).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_retain_energy_equals_the_float64_reference(tmp_path: Path, architecture: str, dtype: torch.dtype) -> None:
    folders = _case(tmp_path, architecture, dtype, base=False)
    data = models.write_texts(tmp_path / "retain.jsonl")
    out, edited, samples = _run(tmp_path, RETAIN.format(data=data, **folders))
    into, tuned, written = (reference.tensors_of(folder) for folder in (folders["into"], folders["tuned"], out))
    inputs = reference.recorded_inputs(folders["into"], samples)
    assert set(written) == set(into)
    checked = 0
    for name, info in edited.layout.tensors.items():
        if info.matrix is None:
            _require_stored(written[name], into[name], reference.delta(tuned[name], into[name], transposed=False))
            continue
        transposed = info.matrix.transposed
        assert transposed == (architecture in TRANSPOSED)
        change = reference.delta(tuned[name], into[name], transposed=transposed)
        result = edited.edit(name, figures=True)
        rank, total = int(result.facts[0].facts["rank"]), result.total
        assert abs(rank - reference.stored_rank(inputs[info.parameter])) <= 1
        expected = reference.retain_energy(change, inputs[info.parameter], KEEP, rank)
        assert total is not None
        assert _close(total.dense(), expected), name
        _require_stored(written[name], into[name], expected.T if transposed else expected)
        checked += 1
    assert checked == len(
        [name for name in inputs if name in written and "head" not in name and "embed_out" not in name]
    )
    _require_loads(out)


@pytest.mark.parametrize("rows", [24, 3], ids=["whole", "lacking"])
@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_the_forget_anchored_form_equals_the_float64_reference(tmp_path: Path, architecture: str, rows: int) -> None:
    """With forgotten text that has all directions, and with text that lacks some.

    A ratio of two nearly singular moments magnifies the float32 rounding of their activations: hence 1e-4.
    """
    folders = _case(tmp_path, architecture, torch.float32, base=False)
    data = models.write_texts(tmp_path / "retain.jsonl")
    forget = models.write_texts(tmp_path / "forget.jsonl", rows, seed=7)
    out, edited, fed = _run_with_geometries(tmp_path, ANCHORED.format(data=data, forget=forget, **folders))
    into, tuned, written = (reference.tensors_of(folder) for folder in (folders["into"], folders["tuned"], out))
    retained, forgotten = (reference.recorded_inputs(folders["into"], fed[name]) for name in ("retain", "forget"))
    for name, info in edited.layout.tensors.items():
        if info.matrix is None:
            continue
        transposed = info.matrix.transposed
        change = reference.delta(tuned[name], into[name], transposed=transposed)
        inputs = retained[info.parameter]
        expected = reference.forget_anchored(change, inputs, forgotten[info.parameter], KEEP)
        total = edited.edit(name, figures=True).total
        assert total is not None
        assert _close(total.dense(), expected, 1e-4), name
        assert _close(reference.delta(written[name], into[name], transposed=transposed), expected, 1e-4), name


@pytest.mark.parametrize(
    ("dtype", "rule"), [(torch.float32, AROUND), (torch.bfloat16, BETWEEN)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_null_space_equals_the_float64_reference(
    tmp_path: Path, architecture: str, dtype: torch.dtype, rule: str
) -> None:
    folders = _case(tmp_path, architecture, dtype, base=True)
    data = models.write_thoughts(tmp_path / "thoughts.jsonl")
    out, edited, samples = _run(tmp_path, RAIN.format(data=data, rule=rule, **folders))
    names = ("into", "tuned", "base")
    into, tuned, base = (reference.tensors_of(folders[name]) for name in names)
    written = reference.tensors_of(out)
    inputs = reference.recorded_inputs(folders["into"], samples)
    assert set(written) == set(into)
    for name, info in edited.layout.tensors.items():
        if info.matrix is None:
            assert torch.equal(written[name].view(torch.uint8), into[name].view(torch.uint8)), name
            continue
        transposed = info.matrix.transposed
        change = reference.delta(tuned[name], base[name], transposed=transposed)
        result = edited.edit(name, figures=True)
        rank = int(result.facts[0].facts["rank"])
        assert abs(rank - reference.rank_at(inputs[info.parameter], RTOL)) <= 1
        expected, protected = reference.null_space(change, inputs[info.parameter], rank)
        assert result.total is not None
        assert _close(result.total.dense(), expected), name
        leak = torch.linalg.vector_norm(result.total.dense().double() @ protected)
        assert leak <= 1e-5 * torch.linalg.vector_norm(change), name
        own = edited.subspaces("thinking", name).directions[:, :rank].double()
        assert torch.linalg.vector_norm(result.total.dense().double() @ own) <= 1e-6 * torch.linalg.vector_norm(change)
        _require_stored(written[name], into[name], expected.T if transposed else expected)
    _require_loads(out)
