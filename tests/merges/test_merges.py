"""Merges in recipes: what they see of projected deltas, what steps behind them see, what plan and report say."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mergekit.merge_methods
import pytest
import torch
import yaml
from mergekit.merge_methods import merge_method, registered_methods
from support import models
from support.results import tensors_of
from torch import Tensor

import vecsurgery
from vecsurgery import methods
from vecsurgery.delta import Dense
from vecsurgery.editing.edited import Edited, TensorEdit
from vecsurgery.errors import InputError, RunError
from vecsurgery.merges import Merge, MergedTensor
from vecsurgery.merges import mergekit as adapter
from vecsurgery.merges._mergekit_methods import TABLE
from vecsurgery.plugin.methods import PREFIX
from vecsurgery.report import text


def test_the_table_says_what_the_installed_mergekit_declares() -> None:
    theirs = {method.spec.name: method.spec for method in registered_methods()}
    theirs = {name: spec for name, spec in theirs.items() if not name.startswith(PREFIX)}  # ours, where they registered
    assert {each.name: each for each in TABLE} == {name: adapter.described(spec) for name, spec in theirs.items()}


def test_a_method_that_the_table_lacks_is_found_in_mergekit(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(group: mergekit.merge_methods.TensorGroup, share: float = 0.5, deep: int = 2) -> torch.Tensor:
        return group.entries[0].tensor * share * deep

    made = merge_method(half, name="half", pretty_name="Half")
    monkeypatch.setattr(mergekit.merge_methods, "registered_methods", lambda: (*registered_methods(), made))
    monkeypatch.setattr(mergekit.merge_methods, "get", lambda name: made)
    merge = methods.available()["half"]
    assert isinstance(merge, Merge)
    assert merge.of_weights
    options = merge.options.model_validate({"share": 0.25})
    deltas = {"x": Dense(torch.ones(2, 3))}
    tensor = MergedTensor("t", matrix=True, base=torch.ones(2, 3))
    result = merge.function(deltas, {}, options=options, tensor=tensor).delta.dense()
    assert torch.equal(result, torch.zeros(2, 3, dtype=torch.float64))
    assert set(merge.options.model_fields) == {"share", "deep", "seed"}


def test_another_version_of_mergekit_says_itself_what_its_methods_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "version", lambda name: "0.1.9")
    fewer = tuple(method for method in registered_methods() if method.spec.name != "ties")
    monkeypatch.setattr(mergekit.merge_methods, "registered_methods", lambda: fewer)
    found = methods.available()
    assert "ties" not in found
    assert set(found["della"].options.model_fields) == set(methods.builtin()["della"].options.model_fields)
    assert "retain_energy" in found


def test_a_wrong_merge_is_refused_without_torch(tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    recipe = {"into": "into", "deltas": {"x": {"tuned": "into"}}, "steps": [{"merge": "tie", "as": "y", "density": 2}]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code = (
        "import sys, pathlib\nfrom vecsurgery import methods, recipe\n"
        "try: recipe.load(pathlib.Path('recipe.yaml'), methods.available())\n"
        "except recipe.RecipeError as error: print(error)\n"
        "print('torch' in sys.modules, 'mergekit' in sys.modules)"
    )
    environment = {"PYTHONPATH": str(Path(vecsurgery.__file__).parent.parent), "PATH": ""}
    run = [sys.executable, "-c", code]
    printed = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path, env=environment).stdout
    assert "unknown merge method 'tie'; did you mean 'ties'?" in printed
    assert "steps[0].density: expected a number from 0 to 1; got 2" in printed
    assert printed.endswith("False False\n")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 model with three fine-tunes; rows of text to calibrate on."""
    root = tmp_path_factory.mktemp("merging")
    into = models.checkpoint(root / "into", seed=1, num_hidden_layers=1, dtype=torch.bfloat16)
    for seed, name in enumerate(("math", "code", "chat")):
        models.perturbed(into, root / name, seed=seed + 2, size=0.1)
    models.write_texts(root / "retain.jsonl")
    return root


def _recipe(root: Path, *steps: Mapping[str, Any], **more: Any) -> Path:
    deltas = {name: {"tuned": name} for name in ("math", "code", "chat")}
    content = {"into": "into", "deltas": deltas, "steps": list(steps), "gates": [], **more}
    path = root / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


PROJECT = {"project": "retain_energy", "geometry": "retain", "keep": 0.1}
GEOMETRY = {"retain": {"data": "retain.jsonl"}}
RETAIN = "retain_energy"
UP = "model.layers.0.mlp.up_proj.weight"


def _deltas(root: Path, *names: str) -> list[Tensor]:
    into = tensors_of(root / "into")[UP].float()
    return [tensors_of(root / name)[UP].float() - into for name in names]


def test_a_merge_sees_projected_deltas_and_steps_behind_it_its_result(root: Path, tmp_path: Path) -> None:
    merge = {"merge": "task_arithmetic", "as": "skills", "deltas": ["math", "code"], "weights": {"code": 0.5}}
    path = _recipe(
        root, PROJECT, merge, {"scale": 2.0, "delta": "skills"}, geometry=GEOMETRY, weights={"skills": 0.5, "chat": 0.0}
    )
    record = vecsurgery.run(path, tmp_path / "merged")
    apart = _recipe(root, PROJECT, geometry=GEOMETRY, weights={"code": 0.5, "chat": 0.0})
    vecsurgery.run(apart, tmp_path / "apart")
    for name, values in tensors_of(tmp_path / "merged").items():
        torch.testing.assert_close(values, tensors_of(tmp_path / "apart")[name], rtol=1e-2, atol=1e-4)
    matrix = next(row for row in record["matrices"] if row["tensor"] == UP)
    assert [(step["step"], step["delta"]) for step in matrix["steps"]] == [
        ("retain_energy", "math"),
        ("retain_energy", "code"),
        ("retain_energy", "chat"),
        ("task_arithmetic", "skills"),
        ("scale", "skills"),
    ]
    # the raw change is what the merge alone would have made: the figures tell what projecting was for
    math, code = _deltas(root, "math", "code")
    stored = matrix["stored"]["retain"]
    assert stored["norm_before"] == pytest.approx(0.5 * float((math + 0.5 * code).norm()), rel=1e-5)
    assert stored["rab_after_intended"] < 0.5 * stored["rab_before"]


def test_the_report_tells_of_the_merge(root: Path, tmp_path: Path) -> None:
    merge = {"merge": "ties", "as": "skills", "deltas": ["math", "code"], "density": 0.5, "weights": {"code": 0.5}}
    record = vecsurgery.run(
        _recipe(root, merge, {"merge": "slerp", "as": "all", "delta": "skills", "t": 0.5}), tmp_path / "out"
    )
    first, second = record["merges"]
    assert (first["delta"], first["deltas"], first["weights"]) == (
        "skills",
        ["math", "code"],
        {"math": 1.0, "code": 0.5},
    )
    assert (second["delta"], second["deltas"], second["tensors"]) == ("all", ["skills"], 12)
    math, code = _deltas(root, "math", "code")
    facts = next(row for row in record["matrices"] if row["tensor"] == UP)["steps"][0]["facts"]
    cosine = float((math * code).sum() / math.norm() / code.norm())
    assert facts["cosine_least"] == facts["cosine_largest"] == pytest.approx(cosine, abs=1e-6)
    assert facts["merged"] == 2.0
    assert first["facts"]["cosine_least"] <= cosine <= first["facts"]["cosine_largest"]
    page = text(record)
    assert record["verdict"].startswith("Merged `math` and `code` into `skills` by ties; merged `skills` into `all`")
    assert "math × 1, code × 0.5  skills" in page
    assert "merged into all" in page


def test_the_verdict_tells_of_a_merge_and_of_the_steps_behind_it(root: Path, tmp_path: Path) -> None:
    record = vecsurgery.run(_recipe(root, {"merge": "sce", "as": "skills"}, {"scale": 0.5}), tmp_path / "out")
    assert record["verdict"].startswith(
        "Merged `math`, `code` and `chat` into `skills` by sce; scale on `skills` kept 50 %"
    )


def test_a_projector_behind_a_merge_of_weights_edits_its_result(root: Path, tmp_path: Path) -> None:
    merge = {"merge": "karcher", "as": "skills"}
    record = vecsurgery.run(_recipe(root, merge, PROJECT, geometry=GEOMETRY), tmp_path / "out")
    matrix = next(row for row in record["matrices"] if row["tensor"] == UP)
    assert [(step["step"], step["delta"]) for step in matrix["steps"]] == [("karcher", "skills"), (RETAIN, "skills")]
    stored, facts = matrix["stored"]["retain"], matrix["steps"][1]["facts"]
    assert stored["norm_before"] == pytest.approx(matrix["steps"][0]["facts"]["merged_norm"], rel=1e-6)
    assert stored["rab_before"] == pytest.approx(facts["rab"], rel=1e-5)
    assert stored["rab_after_intended"] == pytest.approx(0.1 * stored["rab_before"], rel=1e-3)


def test_what_a_merge_makes_of_matrices_that_no_delta_changes_is_measured_and_projected(
    root: Path, tmp_path: Path
) -> None:
    models.perturbed(root / "into", tmp_path / "part", seed=7, only="q_proj")
    path = _recipe(
        root,
        {"merge": "multislerp", "as": "skills", "base_model": False, "normalize_weights": False},
        PROJECT,
        geometry=GEOMETRY,
        deltas={name: {"tuned": str(tmp_path / "part")} for name in ("math", "code")},
    )
    record = vecsurgery.run(path, tmp_path / "out")
    matrix = next(row for row in record["matrices"] if row["tensor"] == UP)
    assert [step["step"] for step in matrix["steps"]] == ["multislerp", RETAIN]
    norm = torch.linalg.vector_norm(tensors_of(root / "into")[UP].double())
    assert matrix["steps"][0]["facts"]["merged_norm"] == pytest.approx(float(norm), rel=1e-5)  # weights sum to 2


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = {"merge": "dare_ties", "as": "skills", "density": 0.5}
    path = _recipe(root, merge, output={"shard_size": "10KB"})
    vecsurgery.run(path, tmp_path / "whole")
    edit = Edited.edit

    def failing(edited: Edited, tensor: str, **given: Any) -> TensorEdit:
        if tensor == UP:
            raise RunError("the disk is gone")
        return edit(edited, tensor, **given)

    with monkeypatch.context() as broken:
        broken.setattr(Edited, "edit", failing)
        with pytest.raises(RunError):
            vecsurgery.run(path, tmp_path / "out")
    assert list((tmp_path / "out.partial").glob("*.safetensors"))
    vecsurgery.run(path, tmp_path / "out")
    whole, resumed = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "out")
    assert all(torch.equal(resumed[name], values) for name, values in whole.items())


def test_the_plan_knows_what_is_merged_and_what_is_held_whole(root: Path) -> None:
    planned = vecsurgery.plan(_recipe(root, {"merge": "ties", "as": "skills"}, {"scale": 0.5}))
    assert planned.totals()["tensors_merge"] == len(planned.tensors)
    assert planned.tensors[UP].steps == (("ties", "merge"), ("scale", "scale"))
    assert "merge ties of math and code and chat into skills" in planned.text()
    assert planned.changed["skills"] == planned.changed["math"]
    added = vecsurgery.plan(_recipe(root))
    assert planned.tensors[UP].memory > added.tensors[UP].memory


def test_a_fit_works_on_the_merged_delta(root: Path, tmp_path: Path) -> None:
    models.write_answers(root / "into", root / "forget.jsonl", count=2)
    merge = {"merge": "task_arithmetic", "as": "both", "weights": {"chat": 0.0}}
    fit = {"fit": "amplify", "data": "forget.jsonl", "delta": "both", "loss": 6.0}
    record = vecsurgery.run(_recipe(root, merge, fit), tmp_path / "out")
    assert record["fits"][0]["delta"] == "both"
    factor = record["fits"][0]["facts"]["factor"]
    math, code = _deltas(root, "math", "code")
    expected = (tensors_of(root / "into")[UP].float() + factor * (math + code)).bfloat16()
    torch.testing.assert_close(tensors_of(tmp_path / "out")[UP], expected, rtol=1e-2, atol=1e-3)


def test_a_dropped_tensor_counts_as_zero_in_a_merge(root: Path) -> None:
    deltas = {name: root / name for name in ("math", "code")}
    drop = {"project": "null_space", "geometry": "retain", "delta": "math"}
    merge = {"merge": "task_arithmetic", "as": "both"}
    geometry = vecsurgery.measure(_recipe(root, PROJECT, geometry=GEOMETRY), "retain", root / "retain.safetensors")
    edited = vecsurgery.edit(into=root / "into", deltas=deltas, steps=[drop, merge], geometry={"retain": geometry})
    alone = vecsurgery.edit(into=root / "into", deltas={"code": root / "code"})
    assert torch.equal(edited.read("model.norm.weight"), alone.read("model.norm.weight"))


def test_equal_recipes_have_equal_fingerprints_and_others_have_not(root: Path) -> None:
    def edited(**options: Any) -> str:
        step = {"merge": "dare_ties", "as": "both", "density": 0.5, **options}
        deltas = {name: root / name for name in ("math", "code")}
        return vecsurgery.edit(into=root / "into", deltas=deltas, steps=[step]).fingerprint

    assert edited() == edited(seed=0)
    assert len({edited(), edited(seed=1), edited(density=0.6), edited(weights={"math": 2.0})}) == 4


@pytest.mark.parametrize("thin", [{"merge": "dare_linear"}, {"merge": "della_linear", "epsilon": 0.0}], ids=str)
def test_two_steps_and_two_deltas_of_one_step_share_no_mask(root: Path, thin: Mapping[str, Any]) -> None:
    deltas = dict.fromkeys(("one", "two"), root / "math")
    thin = {**thin, "density": 0.5, "rescale": False}

    def change(*steps: dict[str, Any], **weights: float) -> Tensor:
        edited = vecsurgery.edit(into=root / "into", deltas=deltas, steps=steps, weights=weights, dtype="float64")
        return edited.read(UP) - tensors_of(root / "into")[UP].double()

    (whole,) = _deltas(root, "math")
    apart = [{**thin, "as": f"thin-{name}", "deltas": [name], "id": name} for name in deltas]
    first, second = (change(*apart, **{"thin-one": share, "thin-two": 1.0 - share}) != 0 for share in (1.0, 0.0))
    together = (change({**thin, "as": "thin"}) / whole).round()
    shares = [float(each.double().mean()) for each in (first ^ second, together == 1, first & second, together == 2)]
    assert shares == pytest.approx([0.5, 0.5, 0.25, 0.25], abs=0.08)


def test_weights_in_a_notebook_name_the_deltas_that_are_left(root: Path) -> None:
    deltas, steps = {name: root / name for name in ("math", "code")}, [{"merge": "ties", "as": "both"}]
    with pytest.raises(InputError, match=r"weights: unknown delta 'math'; expected one of: both"):
        vecsurgery.edit(into=root / "into", deltas=deltas, steps=steps, weights={"math": 1.0})
    halved = vecsurgery.edit(into=root / "into", deltas=deltas, steps=steps, weights={"both": 0.0})
    assert torch.equal(halved.read(UP), tensors_of(root / "into")[UP])
