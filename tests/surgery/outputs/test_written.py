"""What a recipe writes in place of a checkpoint: a delta that gives the same bytes, an adapter that PEFT loads."""

import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import models
from support.results import contents, require_close, same_bits, tensors_of, write_adapter

import vecsurgery
from vecsurgery.errors import InputError, RunError, UnsupportedError
from vecsurgery.surgery import adapter_output, delta_output

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
Run = Callable[..., Any]


def test_an_applied_delta_is_the_checkpoint_of_the_same_recipe(
    root: Path, run: Run, tmp_path: Path, projected: dict[str, Any]
) -> None:
    run("whole", **projected)
    record = run("delta", **projected, output={"format": "delta", "shard_size": "20KB"})
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


def test_a_delta_file_stands_for_tuned_in_a_recipe(
    root: Path, run: Run, tmp_path: Path, projected: dict[str, Any]
) -> None:
    vecsurgery.extract(root / "into", root / "tuned", tmp_path / "delta", dtype="float32")
    record = run("from-file", **projected, deltas={"x": {"file": str(tmp_path / "delta")}})
    run("from-models", **projected)
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
