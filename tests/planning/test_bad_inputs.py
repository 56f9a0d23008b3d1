"""Everything a user can get wrong: one clear error, exit code 2, and nothing left under the output's name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from support import models
from support.workspace import Workspace

from tests.planning.bad_inputs import Spoil, Table, require_refused
from vecsurgery.cli import main

CASES = Table()
case = CASES.case


def _edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def _edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _rows(workspace: Workspace, *rows: dict[str, Any] | str) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (workspace.root / "retain.jsonl").write_text("\n".join(lines) + "\n")


QUERY = "model.layers.1.self_attn.q_proj.weight"


@case("typo in a top-level key", "recipe.yaml:2", "detlas", "deltas")
def _(work: Workspace) -> str:
    return "into: into\ndetlas: {change: {tuned: tuned}}\nsteps: [{scale: 1.0}]\n"


@case("typo in a step's key", "kep", "keep")
def _(work: Workspace) -> None:
    work.recipe["steps"][0]["kep"] = work.recipe["steps"][0].pop("keep")


@case("unknown projector", "retain_enrgy", "retain_energy")
def _(work: Workspace) -> None:
    work.recipe["steps"][0]["project"] = "retain_enrgy"


@case("unknown geometry", "retian", "retain")
def _(work: Workspace) -> None:
    work.recipe["steps"][0]["geometry"] = "retian"


@case("keep out of range", "keep", "1.5")
def _(work: Workspace) -> None:
    work.recipe["steps"][0]["keep"] = 1.5


@case("keep and strength", "keep", "strength")
def _(work: Workspace) -> None:
    work.recipe["steps"][0]["strength"] = 1.0


@case("a verb of no release", "blend", "merge")
def _(work: Workspace) -> None:
    work.recipe["steps"].append({"blend": "ties", "as": "both"})


@case("a weight of a delta that is merged away", "weights.change", "merged into 'both' by steps[1]")
def _(work: Workspace) -> None:
    work.recipe["steps"].append({"merge": "ties", "as": "both"})
    work.recipe["weights"] = {"change": 0.5}


@case("numbers that a merge cannot use", "step 'della'", "density +/- epsilon")
def _(work: Workspace) -> None:
    work.recipe["steps"] = [{"merge": "della", "as": "both", "density": 0.9, "epsilon": 0.5}]
    work.recipe["geometry"] = {}


@case("weights of a merge that sum to nothing", "step 'linear'", "NaN or infinity")
def _(work: Workspace) -> None:
    work.recipe["steps"] = [{"merge": "linear", "as": "both", "weights": {"change": 0.0}}]
    work.recipe["geometry"] = {}


@case("a projector where a fit is wanted", "write project: retain_energy")
def _(work: Workspace) -> None:
    work.recipe["steps"].append({"fit": "retain_energy", "data": "retain.jsonl"})


@case("another output format", "format")
def _(work: Workspace) -> None:
    work.recipe["output"] = {"format": "adapter"}


@case("a YAML syntax error", "recipe.yaml:3")
def _(work: Workspace) -> str:
    return "into: into\ndeltas: {change: {tuned: tuned}\nsteps: []\n"


@case("a repeated key", "into", "recipe.yaml:2")
def _(work: Workspace) -> str:
    return "into: into\ninto: tuned\ndeltas: {change: {tuned: tuned}}\nsteps: [{scale: 1.0}]\n"


@case("an empty recipe", "empty")
def _(work: Workspace) -> str:
    return ""


@case("no such data file", "missing.jsonl")
def _(work: Workspace) -> None:
    work.recipe["geometry"]["retain"]["data"] = "missing.jsonl"


@case("no such model folder", "recipe.yaml:1", "nowhere")
def _(work: Workspace) -> None:
    work.recipe["into"] = "./nowhere"


@case("a hub model that is not cached, offline", "org/model")
def _(work: Workspace) -> None:
    work.recipe["into"] = "org/model"


@case("data without rows", "retain.jsonl", "no row")
def _(work: Workspace) -> None:
    (work.root / "retain.jsonl").write_text("")


@case("a row without a known field", "retain.jsonl:1", "sentence")
def _(work: Workspace) -> None:
    _rows(work, {"sentence": "w10 w11"})


@case("a row with a missing field", "retain.jsonl:1", "response")
def _(work: Workspace) -> None:
    _rows(work, {"prompt": "w10 w11"})


@case("a row of a wrong type", "retain.jsonl:2", "text")
def _(work: Workspace) -> None:
    _rows(work, {"text": "w10 w11"}, {"text": 7})


@case("a row that is no JSON", "retain.jsonl:2")
def _(work: Workspace) -> None:
    _rows(work, {"text": "w10 w11"}, '{"text": "w10')


@case("data that are not UTF-8", "retain.jsonl", "UTF-8")
def _(work: Workspace) -> None:
    (work.root / "retain.jsonl").write_bytes(b'{"text": "\xff\xfe"}\n')


@case("a tag that does not occur", "<plan>")
def _(work: Workspace) -> None:
    work.recipe["geometry"]["retain"]["tokens"] = {"between": ["<plan>", "</plan>"]}


@case("rows out of range", "rows")
def _(work: Workspace) -> None:
    work.recipe["geometry"]["retain"]["rows"] = "900-950"


@case("a template that deletes the reasoning", "template", "left out")
def _(work: Workspace) -> None:
    template = "{% for m in messages %}{{ m['content'].split('</think>')[-1] }}{% endfor %}"
    _edit_json(work.root / "into" / "tokenizer_config.json", chat_template=template)
    row = [{"role": "user", "content": "w10 <think> w11 </think> w12"}, {"role": "assistant", "content": "w13"}]
    _rows(work, {"messages": row})


@case("a tokenizer that cannot be loaded", "tokenizer")
def _(work: Workspace) -> None:
    (work.root / "into" / "tokenizer.json").write_text("{}")


@case("no tokenizer", "tokenizer")
def _(work: Workspace) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (work.root / "into" / name).unlink()


@case("a folder without config.json", "config.json")
def _(work: Workspace) -> None:
    (work.root / "into" / "config.json").unlink()


@case("a config.json that is no JSON", "config.json")
def _(work: Workspace) -> None:
    (work.root / "into" / "config.json").write_text("{")


@case("an unknown architecture", "hyperion")
def _(work: Workspace) -> None:
    _edit_json(work.root / "into" / "config.json", model_type="hyperion")


@case("an architecture without causal model", "bert")
def _(work: Workspace) -> None:
    _edit_json(work.root / "into" / "config.json", model_type="bert", architectures=["BertModel"])


@case("code in the checkpoint", "code")
def _(work: Workspace) -> None:
    _edit_json(work.root / "into" / "config.json", model_type="own", auto_map={"AutoModelForCausalLM": "modeling.Own"})


@case("no weights", "model.safetensors")
def _(work: Workspace) -> None:
    (work.root / "tuned" / "model.safetensors").unlink()


@case("a truncated shard", "model.safetensors")
def _(work: Workspace) -> None:
    path = work.root / "tuned" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


@case("an index that names a missing shard", "model-00002-of-00003.safetensors")
def _(work: Workspace) -> None:
    models.shuffle_shards(work.root / "into", seed=0)
    (work.root / "into" / "model-00002-of-00003.safetensors").unlink()


@case("an index that leads out of the folder", "..")
def _(work: Workspace) -> None:
    models.shuffle_shards(work.root / "into", seed=0)
    path = work.root / "into" / "model.safetensors.index.json"
    path.write_text(path.read_text().replace("model-00001-of", "../tuned/model-00001-of"))


@case("wrong shapes", QUERY, "[16, 32]")
def _(work: Workspace) -> None:
    _edit_tensors(work.root / "tuned", lambda t: t.update({QUERY: t[QUERY][:16].clone()}))


@case("a model of another size", "tuned")
def _(work: Workspace) -> None:
    shutil.rmtree(work.root / "tuned")
    models.checkpoint(work.root / "tuned", seed=2, hidden_size=64)


@case("NaN in the tuned model", QUERY, "NaN")
def _(work: Workspace) -> None:
    _edit_tensors(work.root / "tuned", lambda t: t[QUERY].view(-1)[3:4].fill_(float("nan")))


@case("infinity in the model to edit", QUERY, "infinity")
def _(work: Workspace) -> None:
    _edit_tensors(work.root / "into", lambda t: t[QUERY].view(-1)[3:4].fill_(float("inf")))


@case("a quantisation configuration", "bitsandbytes")
def _(work: Workspace) -> None:
    _edit_json(
        work.root / "into" / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
    )


@case("packed integers", "qweight")
def _(work: Workspace) -> None:
    name = "model.layers.0.self_attn.q_proj.qweight"
    _edit_tensors(work.root / "tuned", lambda t: t.update({name: torch.ones(8, 8, dtype=torch.int32)}))


@case("a GGUF folder", "GGUF")
def _(work: Workspace) -> None:
    (work.root / "tuned" / "model.safetensors").rename(work.root / "tuned" / "model.gguf")


@case("tuned equal to base", "change")
def _(work: Workspace) -> None:
    work.recipe["deltas"]["change"]["tuned"] = "into"


@case("layers that the model lacks", "'retain_energy' (line 9): its layers name", "3 blocks, 0 to 2; leave out 40-50")
def _(work: Workspace) -> None:
    work.recipe["steps"][0]["layers"] = "40-50"


@case("a range of layers that goes beyond the last", "3 blocks, 0 to 2; leave out 3-99")
def _(work: Workspace) -> None:
    work.recipe["steps"][0]["layers"] = "0-99"


@case("a selection that matches nothing", "modules", "matches no block matrix", "with 3 blocks")
def _(work: Workspace) -> None:
    work.recipe["steps"][0]["modules"] = ["other"]


@case("a glob that names only a norm", "input_layernorm")
def _(work: Workspace) -> None:
    work.recipe["steps"][0]["where"] = ["*input_layernorm*"]


@case("an output folder in use", "out", "not empty")
def _(work: Workspace) -> None:
    work.out.mkdir()
    (work.out / "mine.txt").write_text("precious")


@case("a partial output of another plan", "out.partial")
def _(work: Workspace) -> None:
    state = work.root / "out.partial" / ".vecsurgery"
    state.mkdir(parents=True)
    (state / "plan").write_text("another")


@case("a partial output of another origin", "out.partial")
def _(work: Workspace) -> None:
    (work.root / "out.partial").mkdir()
    (work.root / "out.partial" / "mine.txt").write_text("precious")


@case("an adapter of an unsupported kind", "LOHA")
def _(work: Workspace) -> None:
    (work.root / "adapter").mkdir()
    (work.root / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LOHA"}))
    work.recipe["deltas"] = {"change": {"adapter": "./adapter"}}


@case("DoRA", "DoRA")
def _(work: Workspace) -> None:
    (work.root / "adapter").mkdir()
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ["q_proj"]}
    (work.root / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    work.recipe["deltas"] = {"change": {"adapter": "./adapter"}}


@case("a geometry of another model", "fingerprint")
def _(work: Workspace) -> None:
    recipe = work.write()
    result = CliRunner().invoke(main, ["measure", str(recipe), "--out", str(work.root / "geometry.safetensors")])
    assert result.exit_code == 0, result.output
    _edit_tensors(work.root / "into", lambda t: t[QUERY].view(-1)[0:1].fill_(0.5))
    work.recipe["geometry"]["retain"] = {"file": "geometry.safetensors"}


@case("a geometry file that is none", "retain.jsonl")
def _(work: Workspace) -> None:
    work.recipe["geometry"]["retain"] = {"file": "retain.jsonl"}


@case("--set of an unknown step", "retain_enrgy", "retain_energy")
def _(work: Workspace) -> str:
    return "SET retain_enrgy.keep=0.5"


def test_there_are_at_least_forty_cases() -> None:
    assert len(CASES.names) >= 40
    assert len(set(CASES.names)) == len(CASES.names)


@pytest.mark.parametrize(("name", "spoil", "expected"), CASES.entries, ids=CASES.names)
def test_bad_input_is_one_clear_error(workspace: Workspace, name: str, spoil: Spoil, expected: tuple[str, ...]) -> None:
    require_refused(workspace, spoil, expected)


def test_too_little_disk_is_refused_with_both_numbers(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
    result = CliRunner().invoke(main, ["run", str(workspace.write()), str(workspace.out)])
    assert result.exit_code == 2
    assert "1.0 kB free" in result.stderr
    assert not workspace.out.exists()
