"""The fit amplify in a run: against whole models, its passes and reads, its file, its matrices."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import models
from support.results import contents, in_float32, tensors_of
from support.workspace import Workspace
from torch import Tensor
from transformers import AutoModelForCausalLM

import vecsurgery
from vecsurgery.checkpoint import Stored
from vecsurgery.errors import InputError
from vecsurgery.fits import Coefficients
from vecsurgery.forward import losses
from vecsurgery.surgery import fitting
from vecsurgery.surgery.api import opened

SHARE = 0.6
FILE = "surgery/amplify.coefficients.json"


@pytest.fixture
def unlearned(workspace: Workspace) -> Workspace:
    """A recipe whose raw delta makes the answers less probable, in float32."""
    in_float32(workspace)
    models.perturbed(workspace.root / "into", workspace.root / "tuned", seed=7, size=0.12, only="proj")
    models.write_answers(workspace.root / "into", workspace.root / "forget.jsonl")
    workspace.recipe["steps"] = [
        {"project": "retain_energy", "geometry": "retain", "keep": 0.02},
        {"fit": "amplify", "data": "forget.jsonl", "share": SHARE},
    ]
    workspace.recipe["gates"] = []
    return workspace


def _capped(tensors: dict[str, Tensor], folder: Path, samples: Any) -> float:
    """Capped answer loss of a whole transformers model with these tensors."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=False)
    limit = math.log(model.config.vocab_size)
    rows = []
    for sample in samples:
        with torch.no_grad():
            scores = model(input_ids=torch.tensor([sample.ids])).logits[0].double().log_softmax(-1)
        losses = [-float(scores[place - 1, sample.ids[place]]) for place in sample.answer]
        rows.append(sum(min(loss, limit) for loss in losses) / len(losses))
    return sum(rows) / len(rows)


def _first_crossing(loss: Callable[[float], float], target: float) -> float:
    """The least factor of 1 to 8 with the target loss: a fine scan, then bisection."""
    factors = [8.0 ** (step / 60) for step in range(61)]
    index = next(index for index, factor in enumerate(factors) if loss(factor) >= target)
    low, high = factors[index - 1], factors[index]
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if loss(middle) >= target else (middle, high)
    return high


def test_the_coefficient_is_that_of_a_reference_with_whole_models(unlearned: Workspace) -> None:
    fit = unlearned.recipe["steps"].pop()
    vecsurgery.run(unlearned.write(), unlearned.root / "projected")
    into, tuned, projected = (tensors_of(unlearned.root / name) for name in ("into", "tuned", "projected"))
    unlearned.recipe["steps"].append(fit)
    record = vecsurgery.run(unlearned.write(), unlearned.out)
    inputs = opened(unlearned.root / "recipe.yaml")
    samples = inputs.fit_samples["amplify"].samples
    layout = inputs.into.layout

    def loss(factor: float) -> float:
        tensors = {
            name: (into[name].double() + (factor if layout.tensors[name].matrix else 1.0) * (end.double() - into[name]))
            for name, end in projected.items()
        }
        return _capped(tensors, unlearned.root / "into", samples)

    start, raw = (_capped(tensors, unlearned.root / "into", samples) for tensors in (into, tuned))
    assert raw > start
    expected = _first_crossing(loss, start + SHARE * (raw - start))
    (found,) = record["fits"]
    assert found["facts"]["into"] == pytest.approx(start, rel=1e-5)
    assert found["facts"]["raw"] == pytest.approx(raw, rel=1e-5)
    assert 1.0 < expected < 8.0
    assert found["facts"]["factor"] == pytest.approx(expected, rel=1e-3)


def test_the_written_matrices_are_the_projected_ones_times_the_factor(unlearned: Workspace) -> None:
    fit = unlearned.recipe["steps"].pop()
    vecsurgery.run(unlearned.write(), unlearned.root / "projected")
    unlearned.recipe["steps"].append(fit)
    record = vecsurgery.run(unlearned.write(), unlearned.out)
    into, projected, out = (tensors_of(unlearned.root / name) for name in ("into", "projected", "out"))
    found = Coefficients.from_json((unlearned.out / FILE).read_text(), where=FILE)
    factor = record["fits"][0]["facts"]["factor"]
    matrices = {row["tensor"] for row in record["matrices"]}
    assert set(found.tensors) == matrices
    assert set(found.tensors.values()) == {factor}
    for name, tensor in out.items():
        scale = factor if name in matrices else 1.0
        expected = into[name].double() + scale * (projected[name].double() - into[name].double())
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-5, atol=1e-6)
    for row in record["matrices"]:
        stored = row["stored"]["retain"]
        assert stored["rab_after_stored"] == pytest.approx(stored["rab_after_intended"], rel=1e-3)
        assert stored["norm_ratio_stored"] == pytest.approx(stored["norm_ratio_intended"], rel=1e-3)


def test_a_fit_takes_two_passes_and_reads_each_tensor_once_in_each(
    unlearned: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[Counter[tuple[str, str]]] = []
    scores, read = fitting.token_scores, Stored.read

    def scored(*args: Any, **kwargs: Any) -> Any:
        passes.append(Counter())
        return scores(*args, **kwargs)

    def counted(self: Stored, tensor: str, rows: "slice | Tensor | None" = None) -> Tensor:
        if passes:
            passes[-1][self.folder.name, tensor] += 1
        return read(self, tensor, rows)

    def stop(*_: Any, **__: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr(fitting, "token_scores", scored)
    monkeypatch.setattr(Stored, "read", counted)
    monkeypatch.setattr("vecsurgery.surgery.running.write_all", stop)
    with pytest.raises(InterruptedError):
        vecsurgery.run(unlearned.write(), unlearned.out)
    assert len(passes) == 2
    names = set(Stored(unlearned.root / "into").layout.tensors)
    first, second = passes
    assert set(first) == {(folder, name) for folder in ("into", "tuned") for name in names}
    assert set(first.values()) == {1}
    assert {key for key, count in second.items() if count > 1} == set()


def test_a_resumed_run_uses_the_coefficients_that_are_there(
    unlearned: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    vecsurgery.run(unlearned.write(), unlearned.root / "whole")

    def stop(*_: Any, **__: Any) -> None:
        raise InterruptedError

    with monkeypatch.context() as patched:
        patched.setattr("vecsurgery.surgery.running.write_all", stop)
        with pytest.raises(InterruptedError):
            vecsurgery.run(unlearned.write(), unlearned.out)
    assert (unlearned.root / "out.partial" / FILE).is_file()
    monkeypatch.setattr(fitting, "token_scores", stop)
    vecsurgery.run(unlearned.write(), unlearned.out)
    assert contents(unlearned.out) == contents(unlearned.root / "whole")


@pytest.mark.parametrize("change", ["step", "delta", "tensors", "bytes"])
def test_coefficients_of_something_else_are_refused(
    unlearned: Workspace, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise InterruptedError

    monkeypatch.setattr("vecsurgery.surgery.running.write_all", stop)
    with pytest.raises(InterruptedError):
        vecsurgery.run(unlearned.write(), unlearned.out)
    path = unlearned.root / "out.partial" / FILE
    content = json.loads(path.read_text())
    if change == "tensors":
        content["tensors"].popitem()
    elif change != "bytes":
        content[change] = "other"
    path.write_bytes(b"\xff" if change == "bytes" else json.dumps(content).encode())
    with pytest.raises(InputError, match=r"reading coefficients from .*amplify\.coefficients\.json.*delete the file"):
        vecsurgery.run(unlearned.write(), unlearned.out)


def test_a_plan_is_another_where_answers_begin_elsewhere(unlearned: Workspace) -> None:
    """The same tokens are fed, others of them are scored."""
    file = unlearned.root / "forget.jsonl"
    hashes = set()
    for prompt, response in (("w20 w21", " w22 w23"), ("w20 w21 w22", " w23")):
        file.write_text(json.dumps({"prompt": prompt, "response": response}))
        hashes.add(vecsurgery.plan(unlearned.write()).hash)
    assert len(hashes) == 2


def test_the_plan_counts_the_passes_of_many_tokens(unlearned: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (few,) = vecsurgery.plan(unlearned.write()).fits.values()
    assert (few.models, few.passes) == (20, 2)
    monkeypatch.setattr(losses, "_STATES", 4 * few.tokens * 32 * 4)
    (many,) = vecsurgery.plan(unlearned.write()).fits.values()
    assert many.passes == 3 + 3
    assert many.reads == 3 * few.reads
    assert many.memory < few.memory


def test_a_fit_passes_by_fused_matrices_of_which_the_projector_edits_other_rows(
    tmp_path: Path, unlearned: Workspace
) -> None:
    into = models.checkpoint(tmp_path / "into", "phi3", seed=1)
    models.perturbed(into, tmp_path / "tuned", seed=7, size=0.12, only="proj")
    unlearned.recipe |= {"into": str(into), "deltas": {"change": {"tuned": str(tmp_path / "tuned")}}}
    models.write_answers(into, unlearned.root / "forget.jsonl")
    unlearned.recipe["steps"][0] |= {"modules": ["q", "gate", "up", "down"]}
    unlearned.recipe["steps"][1] |= {"modules": ["v", "down"], "range": [0.25, 4.0]}
    record = vecsurgery.run(unlearned.write(), unlearned.out)
    assert record["fits"][0]["tensors"] == 3
    unlearned.recipe["steps"][1]["modules"] = ["v"]
    with pytest.raises(InputError, match=r"step 'amplify'.*matches no block matrix"):
        vecsurgery.run(unlearned.write(), unlearned.root / "none")


def test_a_fit_without_projector_takes_every_block_matrix_and_those_selected_only(unlearned: Workspace) -> None:
    del unlearned.recipe["steps"][0]
    unlearned.recipe["steps"][0] |= {"layers": "1", "range": [0.25, 4.0]}
    record = vecsurgery.run(unlearned.write(), unlearned.out)
    assert record["fits"][0]["tensors"] == 7
    assert {row["layer"] for row in record["matrices"]} == {1}


def test_a_fit_follows_the_rows_of_the_projector_above(tmp_path: Path, unlearned: Workspace) -> None:
    into = models.checkpoint(tmp_path / "into", "phi3", seed=1)
    models.perturbed(into, tmp_path / "tuned", seed=7, size=0.12, only="proj")
    unlearned.recipe |= {"into": str(into), "deltas": {"change": {"tuned": str(tmp_path / "tuned")}}}
    models.write_answers(into, unlearned.root / "forget.jsonl")
    unlearned.recipe["steps"][0] |= {"modules": ["q", "gate", "up", "down"], "keep": 0.02}
    unlearned.recipe["steps"][1]["range"] = [0.25, 4.0]
    record = vecsurgery.run(unlearned.write(), unlearned.out)
    factor = record["fits"][0]["facts"]["factor"]
    assert factor != 1.0
    plain = {name: tensors_of(folder) for name, folder in (("into", into), ("tuned", tmp_path / "tuned"))}
    out = tensors_of(unlearned.out)
    name = "model.layers.0.self_attn.qkv_proj.weight"
    queries = 32
    # k and v rows of the fused matrix pass with the raw delta; the q rows are projected and amplified.
    assert torch.equal(out[name][queries:], plain["tuned"][name][queries:])
    assert not torch.allclose(out[name][:queries], plain["tuned"][name][:queries], atol=1e-4)


def test_rows_that_the_raw_delta_does_not_forget_are_an_error_that_names_the_step(unlearned: Workspace) -> None:
    unlearned.recipe |= {"into": "tuned", "deltas": {"change": {"tuned": "into"}}}
    unlearned.recipe["geometry"]["retain"]["model"] = "tuned"
    with pytest.raises(InputError, match=r"step 'amplify'.*nothing was forgotten"):
        vecsurgery.run(unlearned.write(), unlearned.out)
    assert not unlearned.out.exists()


def test_the_loss_of_a_reference_model_is_a_target(unlearned: Workspace) -> None:
    models.perturbed(unlearned.root / "into", unlearned.root / "retrained", seed=7, size=0.08)
    del unlearned.recipe["steps"][1]["share"]
    unlearned.recipe["steps"][1]["reference"] = "retrained"
    record = vecsurgery.run(unlearned.write(), unlearned.out)
    samples = opened(unlearned.root / "recipe.yaml").fit_samples["amplify"].samples
    expected = _capped(tensors_of(unlearned.root / "retrained"), unlearned.root / "into", samples)
    assert record["fits"][0]["facts"]["target"] == pytest.approx(expected, rel=1e-5)


def test_projected_matrices_that_the_fit_leaves_out_are_listed(unlearned: Workspace) -> None:
    unlearned.recipe["steps"][0]["layers"] = "0-1"
    unlearned.recipe["steps"][1]["layers"] = "1"
    plan = vecsurgery.plan(unlearned.write())
    layout = plan.inputs.into.layout
    found = {
        step: {layout.tensors[name].layer for name, own, _ in plan.left_out() if own == step}
        for step in ("retain_energy", "amplify")
    }
    # What no projector edited is none of the fit's business, selected or not.
    assert found == {"retain_energy": {2}, "amplify": {0}}
