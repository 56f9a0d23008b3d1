"""What a recipe writes in place of a checkpoint: a delta that gives the same bytes, an adapter that PEFT loads."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support import models
from support.results import contents, require_close, same_bits, tensors_of, write_adapter
from torch import Tensor
from transformers import AutoModelForCausalLM

import vecsurgery
from vecsurgery.delta import Factored
from vecsurgery.editing.audit import Audited
from vecsurgery.errors import InputError, RunError, UnsupportedError
from vecsurgery.surgery import adapter_output, delta_output

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.tensor([[1, 20, 33, 47, 12, 90]])
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`into`, `tuned`, `other` (another model of the family), an adapter and calibration text; bfloat16."""
    folder = tmp_path_factory.mktemp("outputs")
    models.checkpoint(folder / "into", seed=1, dtype=torch.bfloat16, num_hidden_layers=2)
    models.perturbed(folder / "into", folder / "tuned", seed=2, size=0.05)
    models.perturbed(folder / "into", folder / "other", seed=3)
    modules = {
        f"model.layers.{layer}.{name}": 32 for layer in range(2) for name in ("self_attn.q_proj", "mlp.down_proj")
    }
    write_adapter(folder / "adapter", {name: 32 for name in modules if "q_proj" in name})
    models.write_texts(folder / "retain.jsonl", 8)
    return folder


@pytest.fixture
def run(root: Path, tmp_path: Path) -> Run:
    """Run a recipe on the models of `root` into a folder of `tmp_path`; returns its record."""

    def carried_out(name: str, **keys: Any) -> Any:
        recipe = {"into": str(root / "into"), "deltas": {"x": {"tuned": str(root / "tuned")}}, "gates": [], **keys}
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(recipe))
        return vecsurgery.run(path, tmp_path / name)

    return carried_out


def projected(root: Path) -> dict[str, Any]:
    return {
        "geometry": {"retain": {"data": str(root / "retain.jsonl")}},
        "steps": [{"project": "retain_energy", "geometry": "retain", "keep": 0.1}],
        "weights": {"x": 0.7},
    }


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def test_an_applied_delta_is_the_checkpoint_of_the_same_recipe(root: Path, run: Run, tmp_path: Path) -> None:
    steps = projected(root)
    run("whole", **steps)
    record = run("delta", **steps, output={"format": "delta", "shard_size": "20KB"})
    vecsurgery.apply(root / "into", tmp_path / "delta", tmp_path / "applied")
    whole, applied = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "applied")
    assert all(same_bits(applied[name], whole[name]) for name in whole)
    assert len(list((tmp_path / "delta").glob("delta-*.safetensors"))) > 1
    assert set(vecsurgery.verify(tmp_path / "delta").values()) == {"same"}
    assert record["matrices"][0]["stored"]["retain"]["rab_after_stored"] > 0
    assert "written as a delta with a patch of" in record["verdict"]
    vecsurgery.undo(tmp_path / "whole", tmp_path / "delta", tmp_path / "back")
    into, back = tensors_of(root / "into"), tensors_of(tmp_path / "back")
    assert all(same_bits(back[name], into[name]) for name in into)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_type_of_the_values_changes_the_patch_but_not_what_is_applied(
    root: Path, tmp_path: Path, dtype: Any
) -> None:
    record = vecsurgery.extract(root / "into", root / "tuned", tmp_path / "delta", dtype=dtype)
    vecsurgery.apply(root / "into", tmp_path / "delta", tmp_path / "applied")
    applied, tuned = tensors_of(tmp_path / "applied"), tensors_of(root / "tuned")
    assert all(same_bits(applied[name], tuned[name]) for name in tuned)
    assert (record["written"]["rounding"] == 0.0) == (dtype == "float32")


def test_a_delta_file_stands_for_tuned_in_a_recipe(root: Path, run: Run, tmp_path: Path) -> None:
    steps = projected(root)
    vecsurgery.extract(root / "into", root / "tuned", tmp_path / "delta", dtype="float32")
    record = run("from-file", **steps, deltas={"x": {"file": str(tmp_path / "delta")}})
    run("from-models", **steps)
    made, expected, into = (
        tensors_of(folder) for folder in (tmp_path / "from-file", tmp_path / "from-models", root / "into")
    )
    for name in made:
        require_close(made[name].double() - into[name].double(), expected[name].double() - into[name].double(), 0.02)
    assert record["deltas"]["x"]["file"]["fingerprint"]
    assert vecsurgery.reproduce(tmp_path / "from-file", tmp_path / "again")["identical"]
    named = {"file": tmp_path / "delta" / "delta.json"}
    edited = vecsurgery.edit(into=root / "into", deltas={"x": {"file": tmp_path / "delta"}}, weights={"x": 0.5})
    assert edited.read("model.norm.weight").dtype == torch.bfloat16
    assert run("by-its-description", deltas={"x": {key: str(path) for key, path in named.items()}})["deltas"]["x"][
        "changed"
    ]


def test_an_adapter_of_a_head_that_is_walked_by_rows_stays_factored(
    root: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vecsurgery.surgery.writing.ROW_CHUNK", 2000)
    for name in ("head", "other"):
        write_adapter(tmp_path / name, {"lm_head": 160}, seed=len(name))
    deltas = {name: {"adapter": str(tmp_path / name)} for name in ("head", "other")}
    record = run("delta", deltas=deltas, output={"format": "delta"}, weights={"other": 0.5})
    run("whole", deltas=deltas, weights={"other": 0.5})
    vecsurgery.apply(root / "into", tmp_path / "delta", tmp_path / "applied")
    whole, applied = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "applied")
    assert all(same_bits(applied[name], whole[name]) for name in whole)
    assert record["written"]["kinds"] == {"factored": 1}
    assert record["written"]["rounding"] == 0.0


def test_a_delta_of_another_base_is_refused_unless_the_base_is_named(root: Path, run: Run, tmp_path: Path) -> None:
    vecsurgery.extract(root / "into", root / "tuned", tmp_path / "delta")
    file = str(tmp_path / "delta")
    with pytest.raises(InputError, match=r"was made from into .* name that model under `base`"):
        run("refused", into=str(root / "other"), deltas={"x": {"file": file}})
    run("named", into=str(root / "other"), deltas={"x": {"file": file, "base": str(root / "into")}})
    run("models", into=str(root / "other"), deltas={"x": {"tuned": str(root / "tuned"), "base": str(root / "into")}})
    named, expected = tensors_of(tmp_path / "named"), tensors_of(tmp_path / "models")
    for name in named:
        require_close(named[name], expected[name], 0.01)


def test_rows_that_mean_other_tokens_take_no_delta_from_a_file(root: Path, run: Run, tmp_path: Path) -> None:
    vecsurgery.extract(root / "into", root / "tuned", tmp_path / "delta")
    other = Path(shutil.copytree(root / "other", tmp_path / "other"))
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"w50"', '"unheard"'))
    record = run("out", into=str(other), deltas={"x": {"file": str(tmp_path / "delta"), "base": str(root / "into")}})
    made, before = tensors_of(tmp_path / "out"), tensors_of(other)
    name = "model.embed_tokens.weight"
    assert same_bits(made[name][50], before[name][50])
    assert not same_bits(made[name][51], before[name][51])
    assert any("mean another token" in warning for warning in record["warnings"])


def test_an_edited_adapter_loads_in_peft_with_the_logits_of_the_checkpoint(
    root: Path, run: Run, tmp_path: Path
) -> None:
    steps = {**projected(root), "deltas": {"x": {"adapter": str(root / "adapter")}}}
    record = run("adapter", **steps, output={"format": "adapter"})
    run("whole", **steps, output={"dtype": "float32"})
    assert record["written"]["rounding"] == 0.0
    assert {each["rank"] for each in record["written"]["matrices"]} == {4}
    assert "written as an adapter, exact" in record["verdict"]
    plain = loaded(root / "into")
    model = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    torch.testing.assert_close(logits(model), logits(loaded(tmp_path / "whole")), atol=1e-5, rtol=1e-4)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        root / "into"
    )
    assert {path.name for path in (tmp_path / "adapter").glob("*.safetensors")} == {"adapter_model.safetensors"}


@pytest.mark.parametrize(("architecture", "rank"), [("llama", 32), ("gpt2", 32), ("phi3", 32), ("qwen2", 32)])
def test_an_extracted_adapter_of_full_rank_has_the_logits_of_what_it_was_extracted_from(
    architecture: str, rank: int, tmp_path: Path
) -> None:
    """Split, transposed and fused matrices, tied and untied heads."""
    base = models.checkpoint(tmp_path / "base", architecture, seed=1, num_hidden_layers=1)
    only = "mlp" if architecture == "phi3" else "attn"
    tuned = models.perturbed(base, tmp_path / "tuned", seed=2, size=0.1, only=only)
    record = vecsurgery.extract(base, tuned, tmp_path / "lora", rank=rank, others="drop")
    assert record["written"]["rounding"] < 1e-5
    model = PeftModel.from_pretrained(loaded(base), tmp_path / "lora")
    dropped = record["written"]["dropped"]
    whole = loaded(tuned)
    with torch.no_grad():
        for name, parameter in loaded(base).named_parameters():
            if name in dropped:
                whole.get_parameter(name).copy_(parameter)
    assert all(name.endswith("bias") for name in dropped)
    torch.testing.assert_close(logits(model), logits(whole), atol=1e-4, rtol=1e-3)


def test_the_error_of_a_truncated_adapter_is_that_of_the_best_approximation(root: Path, tmp_path: Path) -> None:
    record = vecsurgery.extract(root / "into", root / "tuned", tmp_path / "lora", rank=3, others="drop")
    into, tuned = tensors_of(root / "into"), tensors_of(root / "tuned")
    assert len(record["written"]["matrices"]) == 15
    for each in record["written"]["matrices"]:
        values = torch.linalg.svdvals(tuned[each["tensor"]].double() - into[each["tensor"]].double())
        expected = float((values[3:].square().sum() / values.square().sum()).sqrt())
        assert each["error"] == pytest.approx(expected, rel=1e-4)
    text = vecsurgery.report.text(record)
    assert "Share of the delta's norm that it loses" in text
    assert "no adapter holds them" in text
    assert "What was written" in (tmp_path / "lora" / "report.html").read_text()


def test_ranks_that_differ_are_told_to_peft(root: Path, run: Run, tmp_path: Path) -> None:
    write_adapter(tmp_path / "second", {"model.layers.1.self_attn.q_proj": 32}, seed=6)
    deltas = {"x": {"adapter": str(root / "adapter")}, "y": {"adapter": str(tmp_path / "second")}}
    run("adapter", deltas=deltas, output={"format": "adapter"})
    run("whole", deltas=deltas, output={"dtype": "float32"})
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert sorted([config["r"], *config["rank_pattern"].values()]) == [4, 8]
    model = PeftModel.from_pretrained(loaded(root / "into"), tmp_path / "adapter")
    torch.testing.assert_close(logits(model), logits(loaded(tmp_path / "whole")), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "steps",
    [
        [{"project": "spectral", "rank": 2}],
        [{"project": "low_rank", "rank": 3}, {"scale": [1.0, 0.5]}],
        [{"scale": 0.5, "modules": ["q"]}, {"project": "low_rank", "rank": 3, "modules": ["k"]}],
    ],
    ids=lambda steps: "-".join(str(next(iter(step.items()))) for step in steps),
)
def test_adapters_become_an_adapter_without_their_products_or_the_weights(
    root: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[dict[str, Any]]
) -> None:
    phi3 = "modules" in str(steps)
    into, module = root / "into", "model.layers.0.self_attn.q_proj"
    if phi3:
        into = models.checkpoint(tmp_path / "phi3", "phi3", seed=1, num_hidden_layers=1)
        module = "model.layers.0.self_attn.qkv_proj"
    for seed, name in enumerate("xy"):
        write_adapter(tmp_path / name, {module: 64 if phi3 else 32}, seed=seed)
    content = {"into": str(into), "deltas": {n: {"adapter": str(tmp_path / n)} for n in "xy"}, "steps": steps}
    run("whole", **content, output={"dtype": "float32"})

    def dense(self: Factored) -> Tensor:
        raise AssertionError(f"the product of factors of {tuple(self.shape)} was formed")

    read: list[str] = []
    with monkeypatch.context() as patched:
        patched.setattr(Factored, "dense", dense)
        patched.setattr(Audited, "read", lambda self, tensor, rows=None: read.append(tensor))
        record = run("adapter", **content, output={"format": "adapter", "dtype": "float16"})
    assert read == []
    (name,) = (row["tensor"] for row in record["written"]["matrices"])
    whole, before = tensors_of(tmp_path / "whole")[name].double(), tensors_of(into)[name].double()
    factors = tensors_of(tmp_path / "adapter")
    left, right = (factors[f"base_model.model.{module}.lora_{side}.weight"].double() for side in "BA")
    require_close(left @ right, whole - before, 2e-3)
    lost = record["written"]["matrices"][0]["error"]
    assert 1e-5 < lost < 1e-3  # float16
    assert lost == pytest.approx(float((left @ right - whole + before).norm() / (whole - before).norm()), rel=0.05)


def test_what_an_adapter_cannot_hold_is_refused_by_name_unless_the_recipe_drops_it(
    root: Path, run: Run, tmp_path: Path
) -> None:
    adapter = {"format": "adapter", "rank": 4}
    with pytest.raises(UnsupportedError, match=r"cannot hold the change of model\.embed_tokens\.weight"):
        run("refused", output=adapter)
    zero = {"scale": 0, "where": ["*norm*", "*embed_tokens*"]}
    record = run("scaled-away", output=adapter, steps=[zero])
    assert record["written"]["dropped"] == []
    assert not (tmp_path / "refused").exists()


FACTORED: list[tuple[str, list[dict[str, Any]], str]] = [
    ("tuned", [], r"by 'x' may be none: deltas\.x is a difference of whole matrices"),
    ("tuned", [{"project": "low_rank", "rank": 4, "others": "drop", "layers": "0"}], r"deltas\.x is a difference"),
    ("tuned", [{"project": "low_rank", "rank": 4, "others": "drop"}], ""),
    ("tuned", [{"project": "spectral", "rank": 4, "others": "drop"}], ""),
    ("adapter", [{"merge": "ties", "as": "m"}], r"by 'm' may be none: step 'ties' makes a whole matrix"),
    ("adapter", [{"project": "trim", "density": 0.5, "id": "thin"}], r"step 'thin' \(trim\) makes a whole matrix"),
    ("adapter", [{"project": "trim", "density": 1.0}, {"project": "drop_rescale", "density": 1.0}], ""),
    ("adapter", [{"merge": "ties", "as": "m"}, {"project": "low_rank", "rank": 4}], ""),
    ("adapter", [{"project": "spectral"}, {"project": "low_rank", "energy": 0.9}], ""),
]


@pytest.mark.parametrize(("kind", "steps", "refused"), FACTORED, ids=[f"{each[0]}-{each[1]}" for each in FACTORED])
def test_an_adapter_without_a_rank_is_refused_by_the_plan_just_where_a_step_may_make_it_dense(
    root: Path, run: Run, tmp_path: Path, kind: str, steps: list[dict[str, Any]], refused: str
) -> None:
    content = {
        "into": str(root / "into"),
        "deltas": {"x": {kind: str(root / kind)}},
        "steps": steps,
        "output": {"format": "adapter", "others": "drop"},
        "gates": [],
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(content))
    if not refused:
        assert vecsurgery.run(recipe, tmp_path / "out")["written"]["matrices"]
        return
    for asked in (vecsurgery.check, vecsurgery.plan):
        with pytest.raises(UnsupportedError, match=refused + r".* Give the rank to cut it off at"):
            asked(recipe)


def test_what_a_merge_leaves_for_an_adapter_is_known_before_anything_is_written(
    root: Path, run: Run, tmp_path: Path
) -> None:
    deltas = {name: {"tuned": str(root / "tuned")} for name in ("x", "y")}
    adapter = {"format": "adapter", "rank": 4}
    merge = {"merge": "task_arithmetic", "as": "both"}
    elsewhere = [{"filter": "proj", "value": 0.5}, {"filter": "lm_head", "value": 0.5}, {"value": 0}]
    ways: list[dict[str, Any]] = [
        {"steps": [merge, {"scale": 0, "where": ["*norm*", "*embed_tokens*"]}]},
        {"steps": [{**merge, "weights": {"x": elsewhere, "y": elsewhere}}]},
        {"steps": [merge, {"project": "low_rank", "rank": 4, "others": "drop"}]},
        {"steps": [merge], "weights": {"both": elsewhere}},
    ]
    for number, way in enumerate(ways):
        assert run(f"held-{number}", deltas=deltas, output=adapter, **way)["written"]["dropped"] == []
    with pytest.raises(UnsupportedError, match="output: an adapter cannot hold"):
        run("refused", deltas=deltas, output=adapter, steps=[{**merge, "weights": {"x": elsewhere}}])
    assert not (tmp_path / "refused.partial").exists()


def test_what_a_merge_makes_of_weights_that_no_delta_changed_is_written(root: Path, run: Run, tmp_path: Path) -> None:
    models.perturbed(root / "into", tmp_path / "part", seed=4, only="mlp")
    content: dict[str, Any] = {
        "deltas": {"x": {"tuned": str(tmp_path / "part")}},
        "steps": [{"merge": "linear", "as": "y", "weights": {"x": 0.5}, "normalize": False}],
    }
    run("whole", **content)
    run("delta", **content, output={"format": "delta"})
    vecsurgery.apply(root / "into", tmp_path / "delta", tmp_path / "applied")
    whole, applied = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "applied")
    assert all(same_bits(applied[name], whole[name]) for name in whole)
    assert not same_bits(whole["model.norm.weight"], tensors_of(root / "into")["model.norm.weight"])
    with pytest.raises(UnsupportedError, match=r"writing the adapter: it cannot hold the change of 'model\.embed"):
        run("lost", **content, output={"format": "adapter", "rank": 4})
    content["steps"][0]["normalize"] = True
    modules = {
        row["tensor"] for row in run("mean", **content, output={"format": "adapter", "rank": 4})["written"]["matrices"]
    }
    assert modules == {name for name in whole if ".mlp." in name}


def test_gates_and_evaluation_look_at_what_the_output_gives(root: Path, run: Run) -> None:
    data = {"evaluate": {"general": str(root / "retain.jsonl")}}
    figures = {}
    for form in ("checkpoint", "delta", "adapter"):
        output = {"format": form, **({"rank": 32, "others": "drop"} if form == "adapter" else {})}
        steps = [{"scale": 0, "where": ["*norm*", "*embed_tokens*"]}]
        figures[form] = run(form, **data, steps=steps, output=output)["evaluation"]["general"]["figures"]["edited"]
    assert figures["delta"] == figures["checkpoint"]
    assert figures["adapter"]["perplexity"] == pytest.approx(figures["checkpoint"]["perplexity"], rel=0.02)


@pytest.mark.parametrize("form", ["delta", "adapter"])
def test_an_interrupted_output_goes_on_to_the_same_bytes(
    root: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr("vecsurgery.planning.outputs._PART_SIZE", 4000)
    more = {"shard_size": "20KB"} if form == "delta" else {"rank": 2, "others": "drop"}
    output = {"output": {"format": form, **more}}
    (tmp_path / "elsewhere").mkdir()
    run("elsewhere/out", **output)
    calls = 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RunError("the disk is full")
        return original(*args, **kwargs)

    module = delta_output if form == "delta" else adapter_output
    original = module.appending
    with monkeypatch.context() as full:
        full.setattr(module, "appending", failing)
        with pytest.raises(RunError):
            run("out", **output)
    kept = {path.name for path in (tmp_path / "out.partial").glob("*.safetensors")}
    assert len(kept) == 2
    run("out", **output)
    assert contents(tmp_path / "out") == contents(tmp_path / "elsewhere" / "out")


def _killed(root: Path, out: Path) -> None:
    """Writes a delta until the third file is begun, then ends without a chance to tidy up."""
    import signal

    original, calls = delta_output.appending, []

    def fatal(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    delta_output.appending = fatal  # type: ignore[assignment]
    vecsurgery.extract(root / "into", root / "tuned", out, shard_size=20_000)


def test_a_killed_extraction_resumes_to_the_same_bytes(root: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    vecsurgery.extract(root / "into", root / "tuned", tmp_path / "whole" / "out", shard_size=20_000)
    child = multiprocessing.get_context("fork").Process(target=_killed, args=(root, tmp_path / "out"))
    child.start()
    child.join()
    assert child.exitcode == -9
    assert not (tmp_path / "out").exists()
    vecsurgery.extract(root / "into", root / "tuned", tmp_path / "out", shard_size=20_000)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole" / "out")
