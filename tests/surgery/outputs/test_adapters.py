"""Adapters as the output: what PEFT makes of them, what they cannot hold, and that factors stay factors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from support import models
from support.results import require_close, tensors_of, write_adapter
from torch import Tensor
from transformers import AutoModelForCausalLM

import vecsurgery
from vecsurgery.delta import Factored
from vecsurgery.editing.audit import Audited
from vecsurgery.errors import UnsupportedError

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.tensor([[1, 20, 33, 47, 12, 90]])
Run = Callable[..., Any]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def test_an_edited_adapter_loads_in_peft_with_the_logits_of_the_checkpoint(
    root: Path, run: Run, tmp_path: Path, projected: dict[str, Any]
) -> None:
    steps = {**projected, "deltas": {"x": {"adapter": str(root / "adapter")}}}
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
