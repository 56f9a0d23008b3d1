"""What a step touches: parts of fused matrices, layers, several steps, deltas and geometries, `others`, the rest."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support import models
from support.results import QUERY, in_float32, record_of, require_close, same_bits, tensors_of
from support.workspace import Workspace
from torch import Tensor

import vecsurgery
from tests.blackbox import reference
from vecsurgery.calibration import Samples, load_tokenizer, prepare
from vecsurgery.errors import InputError
from vecsurgery.recipe.types import DataSpec

KEEP = 0.2
NORM = "model.norm.weight"


@dataclass(frozen=True)
class Pair:
    """A float32 checkpoint, a tuned one, calibration samples, and the inputs that hooks record on them."""

    root: Path
    into: dict[str, Tensor]
    tuned: dict[str, Tensor]
    samples: Samples
    inputs: dict[str, Tensor]

    def edit(self, *steps: dict[str, Any], **changes: Any) -> Any:
        given: dict[str, Any] = {
            "into": self.root / "into",
            "deltas": {"change": self.root / "tuned"},
            "geometry": {"retain": self.samples},
        }
        return vecsurgery.edit(**{**given, **changes}, steps=steps)

    def change(self, name: str) -> Tensor:
        return self.tuned[name].double() - self.into[name].double()

    def projected(self, name: str, rows: Tensor | None = None, keep: float = KEEP) -> Tensor:
        """The retain_energy solution of these rows alone, in float64."""
        change, inputs = self.change(name), self.inputs[name]
        return reference.retain_energy(change if rows is None else change[rows], inputs, keep, inputs.shape[1])


def _pair(root: Path, architecture: str) -> Pair:
    into = models.checkpoint(root / "into", architecture, seed=1)
    tuned = models.perturbed(into, root / "tuned", seed=2)
    models.perturbed(into, root / "other", seed=4)
    data = models.write_texts(root / "retain.jsonl")
    samples = prepare(DataSpec((data,)), load_tokenizer(into), rule="all")
    inputs = reference.recorded_inputs(into, [(sample.ids, sample.positions) for sample in samples.samples])
    return Pair(root, reference.tensors_of(into), reference.tensors_of(tuned), samples, inputs)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return _pair(tmp_path_factory.mktemp("llama"), "llama")


def _step(**keys: Any) -> dict[str, Any]:
    return {"project": "retain_energy", "geometry": "retain", "keep": KEEP, **keys}


PHI = ("phi3", "model.layers.1.self_attn.qkv_proj.weight", torch.arange(32))
NEOX = (
    "gpt_neox",
    "gpt_neox.layers.1.attention.query_key_value.weight",
    torch.cat([torch.arange(24 * head, 24 * head + 8) for head in range(4)]),
)


@pytest.mark.parametrize(("architecture", "name", "queries"), [PHI, NEOX], ids=["phi3", "gpt_neox"])
def test_modules_q_edits_only_the_query_rows_of_a_fused_matrix(
    tmp_path: Path, architecture: str, name: str, queries: Tensor
) -> None:
    pair = _pair(tmp_path, architecture)
    edited = pair.edit(_step(modules=["q"]))
    result = edited.read(name) - pair.into[name]
    others = torch.tensor([row for row in range(len(result)) if row not in set(queries.tolist())])
    require_close(result[queries], pair.projected(name, queries), 1e-4)
    require_close(result[others], pair.change(name)[others], 1e-4)
    exact = edited.edit(name, figures=True).total.dense()
    assert same_bits(exact[others], pair.tuned[name][others] - pair.into[name][others])
    untouched = name.replace("qkv_proj", "o_proj").replace("query_key_value", "dense")
    assert same_bits(edited.read(untouched), pair.edit({"scale": 1.0}).read(untouched))


def test_scale_of_a_part_leaves_the_other_rows_as_they_are(tmp_path: Path) -> None:
    _, name, queries = PHI
    pair = _pair(tmp_path, "phi3")
    exact = pair.edit({"scale": 0.0, "modules": ["k", "v"]}).edit(name, figures=True).total.dense()
    require_close(exact[queries], pair.change(name)[queries])
    assert not bool(exact[32:].any())


def test_two_projections_on_different_layers_each_touch_their_own(llama: Pair) -> None:
    name = "model.layers.{}.mlp.up_proj.weight"
    edited = llama.edit(_step(layers=0, keep=0.1, id="low"), _step(layers="2-2", keep=0.5, id="high"))
    expected = {
        0: llama.projected(name.format(0), keep=0.1),
        1: llama.change(name.format(1)),
        2: llama.projected(name.format(2), keep=0.5),
    }
    for layer, change in expected.items():
        result = edited.edit(name.format(layer), figures=True)
        require_close(result.total.dense(), change)
        assert [fact.step for fact in result.facts] == {0: ["low"], 1: [], 2: ["high"]}[layer]


def test_each_step_sees_the_deltas_as_the_steps_above_left_them(llama: Pair) -> None:
    edited = llama.edit({"scale": 0.5}, _step())
    result = edited.edit(QUERY, figures=True)
    require_close(result.total.dense(), 0.5 * llama.projected(QUERY))
    scaled, projected = result.facts
    assert (scaled.method, scaled.facts["factor"]) == ("scale", 0.5)
    assert projected.facts["norm"] == pytest.approx(0.5 * float(llama.change(QUERY).norm()), rel=1e-5)
    twice = llama.edit(_step(id="one"), _step(id="two")).edit(QUERY, figures=True)
    assert twice.facts[1].facts["rab"] == pytest.approx(twice.facts[0].facts["rab_after"], rel=1e-3)


def test_scale_takes_numbers_over_the_blocks_and_a_selection(llama: Pair) -> None:
    edited = llama.edit({"scale": [0, 1], "except": ["*mlp*"]})
    for layer, factor in enumerate((0.0, 0.5, 1.0)):
        query, up = f"model.layers.{layer}.self_attn.q_proj.weight", f"model.layers.{layer}.mlp.up_proj.weight"
        assert torch.allclose(edited.read(query).double(), llama.into[query] + factor * llama.change(query), atol=1e-6)
        assert torch.allclose(edited.read(up).double(), llama.tuned[up].double(), atol=1e-6)


def test_where_and_except_select_by_full_names(llama: Pair) -> None:
    edited = llama.edit(_step(where=["model.layers.1.*", "*up_proj*"], **{"except": ["*q_proj*"]}))
    touched = {name for name in llama.into if edited.edit(name).facts}
    mine = {name for name in llama.into if "layers.1." in name or "up_proj" in name}
    assert touched == {name for name in mine if "q_proj" not in name and "norm" not in name}


@pytest.mark.parametrize(
    ("key", "glob", "hint"),
    [
        ("where", "layers.1.mlp", r"did you mean '\*layers\.1\.mlp\*', which matches 'model\.layers\.1\.mlp"),
        ("except", "*.q_porj.*", "one is 'lm_head.weight'"),
    ],
)
def test_a_glob_that_matches_nothing_beside_one_that_does_is_refused_by_name(
    llama: Pair, key: str, glob: str, hint: str
) -> None:
    with pytest.raises(
        InputError, match=rf"^step 'retain_energy': {key} '{re.escape(glob)}' matches no tensor.*{hint}"
    ):
        _ = llama.edit(_step(**{key: ["*up_proj*", glob]}))


def test_a_glob_may_name_the_head_of_a_model_that_ties_it(tmp_path: Path) -> None:
    into = models.checkpoint(tmp_path / "into", tie_word_embeddings=True)
    tuned = models.perturbed(into, tmp_path / "tuned", seed=2)
    assert "lm_head.weight" not in tensors_of(into)
    edited = vecsurgery.edit(into=into, deltas={"x": tuned}, steps=[{"scale": 0.5, "except": ["lm_head*", "*norm*"]}])
    assert edited.edit(QUERY).facts


def test_two_deltas_go_through_their_own_geometries(workspace: Workspace) -> None:
    in_float32(workspace)
    models.write_texts(workspace.root / "code.jsonl", seed=7)
    workspace.recipe |= {
        "deltas": {"one": {"tuned": "tuned"}, "two": {"tuned": "base"}},
        "geometry": {"retain": {"data": "retain.jsonl"}, "code": {"data": "code.jsonl"}},
        "steps": [_step(delta="one"), _step(geometry="code", delta="two", keep=0.5, id="second")],
        "weights": {"two": 0.5},
    }
    record = vecsurgery.run(workspace.write(), workspace.out)
    into, one, two, written = (tensors_of(workspace.root / name) for name in ("into", "tuned", "base", "out"))
    expected = torch.zeros(32, 32, dtype=torch.float64)
    for tuned, file, keep, weight in ((one, "retain", KEEP, 1.0), (two, "code", 0.5, 0.5)):
        tokenizer = load_tokenizer(workspace.root / "into")
        samples = prepare(DataSpec((workspace.root / f"{file}.jsonl",)), tokenizer, rule="all").samples
        inputs = reference.recorded_inputs(workspace.root / "into", [(item.ids, item.positions) for item in samples])
        change = tuned[QUERY].double() - into[QUERY].double()
        expected += weight * reference.retain_energy(change, inputs[QUERY], keep, 32)
    require_close(written[QUERY] - into[QUERY], expected, 1e-4)
    (matrix,) = [matrix for matrix in record["matrices"] if matrix["tensor"] == QUERY]
    assert [(step["delta"], step.get("geometry")) for step in matrix["steps"]] == [("one", "retain"), ("two", "code")]
    assert set(matrix["stored"]) == {"retain", "code"}
    assert {path.name for path in (workspace.out / "surgery").iterdir()} == {"retain.safetensors", "code.safetensors"}


@pytest.mark.parametrize("method", ["retain_energy", "null_space"])
@pytest.mark.parametrize("others", ["source", "drop", None])
def test_others_says_what_becomes_of_tensors_that_are_no_block_matrix(
    llama: Pair, method: str, others: str | None
) -> None:
    step: dict[str, Any] = {"project": method, "geometry": "retain", "layers": 1}
    step |= {"keep": KEEP} if method == "retain_energy" else {}
    step |= {"others": others} if others else {}
    edited = llama.edit(step)
    added = (others or {"retain_energy": "source", "null_space": "drop"}[method]) == "source"
    norms = [NORM, "model.layers.0.input_layernorm.weight", "model.embed_tokens.weight", "lm_head.weight"]
    for name in norms:
        assert torch.allclose(edited.read(name), llama.tuned[name] if added else llama.into[name], atol=1e-6)
        assert added or same_bits(edited.read(name), llama.into[name])


def test_dropped_tensors_are_out_of_reach_of_the_steps_below(llama: Pair) -> None:
    dropped = llama.edit(_step(others="drop"), {"scale": 2.0})
    assert same_bits(dropped.read(NORM), llama.into[NORM])
    doubled = llama.edit({"scale": 2.0}, _step(others="source"))
    require_close(doubled.read(NORM) - llama.into[NORM], 2 * llama.change(NORM), 1e-4)


def _skipping(workspace: Workspace, **step: Any) -> Workspace:
    workspace.recipe["steps"] = [{"geometry": "retain", "except": ["*.1.self_attn.q_proj*"], **step}]
    return in_float32(workspace)


def test_a_matrix_that_the_selection_leaves_out_passes_unchanged_and_is_listed(workspace: Workspace) -> None:
    _skipping(workspace, project="retain_energy", keep=KEEP)
    plan = vecsurgery.plan(workspace.write())
    assert plan.left_out() == [(QUERY, "retain_energy", "change")]
    assert f"1 changed matrices of change are left out by the selection: {QUERY}" in plan.text()
    record = vecsurgery.run(workspace.write(), workspace.out)
    tuned, written = tensors_of(workspace.root / "tuned"), tensors_of(workspace.out)
    assert torch.allclose(written[QUERY], tuned[QUERY], atol=1e-6)
    assert record["left_out"] == [{"tensor": QUERY, "step": "retain_energy", "delta": "change", "unprotected": False}]
    assert "unprotected" not in record["verdict"]


def test_a_matrix_left_out_of_a_null_space_projection_is_reported_as_unprotected(workspace: Workspace) -> None:
    _skipping(workspace, project="null_space")
    vecsurgery.run(workspace.write(), workspace.out)
    record = record_of(workspace.out)
    assert record["left_out"] == [{"tensor": QUERY, "step": "null_space", "delta": "change", "unprotected": True}]
    text = vecsurgery.report.text(record)
    assert f"{QUERY} left out of null_space: the change by change added unprotected" in text
    assert "1 matrix left out of a projection by the selection and added unprotected" in text


def test_a_matrix_that_another_step_projects_is_not_unprotected(workspace: Workspace) -> None:
    first = {"project": "null_space", "geometry": "retain", "id": "early", "layers": "0-1"}
    workspace.recipe["steps"] = [first, {"project": "null_space", "geometry": "retain", "layers": 2}]
    record = vecsurgery.run(workspace.write(), workspace.out)
    assert {item["step"] for item in record["left_out"]} == {"early", "null_space"}
    assert not any(item["unprotected"] for item in record["left_out"])
    assert not any("unprotected" in warning for warning in vecsurgery.report.warnings(record))


def test_rows_of_a_fused_matrix_that_no_step_projects_are_unprotected(workspace: Workspace) -> None:
    shutil.rmtree(workspace.root / "into")
    shutil.rmtree(workspace.root / "tuned")
    models.checkpoint(workspace.root / "into", "phi3", seed=1)
    models.perturbed(workspace.root / "into", workspace.root / "tuned", seed=2)
    steps = [
        {"project": "null_space", "geometry": "retain", "id": "some", "modules": ["q", "k", "o", "gate", "up", "down"]},
        {"project": "null_space", "geometry": "retain", "modules": ["v"]},
    ]
    workspace.recipe["steps"] = steps[:1]
    record = vecsurgery.run(workspace.write(), workspace.out)
    assert {item["tensor"].rpartition("attn.")[2] for item in record["left_out"] if item["unprotected"]} == {
        "qkv_proj.weight"
    }
    workspace.recipe["steps"] = steps
    record = vecsurgery.run(workspace.write(), workspace.root / "both")
    assert not any(item["unprotected"] for item in record["left_out"])


def test_a_selected_matrix_that_did_not_change_is_copied_and_not_measured(workspace: Workspace) -> None:
    models.perturbed(workspace.root / "into", workspace.root / "tuned", seed=2, only="layers.0.mlp")
    plan = vecsurgery.plan(workspace.write())
    assert {name for name, item in plan.tensors.items() if item.action != "copy"} == {
        f"model.layers.0.mlp.{part}_proj.weight" for part in ("gate", "up", "down")
    }
    vecsurgery.run(workspace.write(), workspace.out)
    into, written = tensors_of(workspace.root / "into"), tensors_of(workspace.out)
    assert all(same_bits(written[name], into[name]) for name in into if "layers.0.mlp" not in name)
    assert vecsurgery.plan(workspace.write()).geometry["retain"].sites == (
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.down_proj",
    )
