"""The notebook's calls: folders, modules and state dicts give the bytes that `run` writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.results import QUERY, contents, same_bits, tensors_of
from support.workspace import Workspace
from transformers import AutoModelForCausalLM

import vecsurgery
from vecsurgery.calibration import Samples, load_tokenizer, prepare
from vecsurgery.errors import InputError
from vecsurgery.geometry import Geometry
from vecsurgery.recipe.types import DataSpec

STEPS = [{"project": "retain_energy", "geometry": "retain", "keep": 0.1}, {"scale": 0.5, "layers": 1}]


@pytest.fixture
def finished(workspace: Workspace) -> Workspace:
    """A workspace whose recipe was run."""
    workspace.recipe["steps"] = STEPS
    vecsurgery.run(workspace.write(), workspace.out)
    return workspace


def _samples(workspace: Workspace) -> Samples:
    spec = DataSpec((workspace.root / "retain.jsonl",))
    return prepare(spec, load_tokenizer(workspace.root / "into"), rule="all")


def _model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


def _require_same(found: dict[str, torch.Tensor], workspace: Workspace) -> None:
    expected = tensors_of(workspace.out)
    assert set(found) == set(expected)
    assert [name for name in expected if not same_bits(found[name], expected[name])] == []


def test_folders_with_a_geometry_file_give_the_bytes_that_run_writes(finished: Workspace) -> None:
    edited = vecsurgery.edit(
        into=finished.root / "into",
        deltas={"change": (finished.root / "tuned", finished.root / "into")},
        steps=STEPS,
        geometry={"retain": Geometry.open(finished.out / "surgery" / "retain.safetensors")},
    )
    _require_same(edited.state_dict(), finished)
    folder = vecsurgery.write(edited, finished.root / "written")
    written, ran = contents(folder), contents(finished.out)
    assert set(ran) - set(written) == {"README.md", "recipe.yaml", "surgery/retain.safetensors"}
    assert all(written[name] == ran[name] for name in written)


def test_folders_with_samples_as_geometry_give_the_same_bytes(finished: Workspace) -> None:
    edited = vecsurgery.edit(
        into=str(finished.root / "into"),
        deltas={"change": str(finished.root / "tuned")},
        steps=STEPS,
        geometry={"retain": _samples(finished)},
    )
    _require_same(edited.state_dict(), finished)


def test_modules_give_the_same_bytes(finished: Workspace) -> None:
    edited = vecsurgery.edit(
        into=_model(finished.root / "into"),
        deltas={"change": _model(finished.root / "tuned")},
        steps=STEPS,
        geometry={"retain": _samples(finished)},
    )
    _require_same(edited.state_dict(), finished)
    folder = vecsurgery.write(edited, finished.root / "written", shard_size=20_000)
    _require_same(tensors_of(folder), finished)
    assert len(list(folder.glob("*.safetensors"))) == 4
    logits = _model(folder)(input_ids=torch.arange(9, 30)[None]).logits
    assert bool(torch.isfinite(logits).all())


def test_state_dicts_give_the_same_bytes_with_the_configuration_of_another_model(finished: Workspace) -> None:
    edited = vecsurgery.edit(
        into=_model(finished.root / "into").state_dict(),
        deltas={"change": (_model(finished.root / "tuned").state_dict(), _model(finished.root / "into"))},
        steps=STEPS,
        geometry={"retain": _samples(finished)},
    )
    _require_same(edited.state_dict(), finished)


def test_a_module_is_left_as_it_was(finished: Workspace) -> None:
    model = _model(finished.root / "into")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    edited = vecsurgery.edit(into=model, deltas={"change": finished.root / "tuned"}, steps=[{"scale": 0.5}])
    edited.state_dict()[QUERY].zero_()
    assert all(same_bits(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_edited_model_can_be_edited_again(workspace: Workspace) -> None:
    first = vecsurgery.edit(
        into=workspace.root / "into", deltas={"a": workspace.root / "tuned"}, steps=[{"scale": 0.5}], dtype="float32"
    )
    second = vecsurgery.edit(
        into=first, deltas={"b": (workspace.root / "base", workspace.root / "into")}, steps=[{"scale": 1.0}]
    )
    into, tuned, base = (tensors_of(workspace.root / name)[QUERY].double() for name in ("into", "tuned", "base"))
    expected = into + 0.5 * (tuned - into) + (base - into)
    assert torch.allclose(second.read(QUERY).double(), expected, atol=1e-6)


def test_rows_of_an_edited_tensor_are_those_of_the_whole(finished: Workspace) -> None:
    edited = vecsurgery.edit(
        into=finished.root / "into",
        deltas={"change": finished.root / "tuned"},
        steps=STEPS,
        geometry={"retain": finished.out / "surgery" / "retain.safetensors"},
    )
    for name in (QUERY, "model.embed_tokens.weight"):
        assert same_bits(edited.read(name, slice(3, 9)), edited.read(name)[3:9])
        assert same_bits(edited.read(name, torch.tensor([7, 2])), edited.read(name)[[7, 2]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": [{"project": "retain_enrgy"}]}, r"^editing the model: 1 problem\n  steps\[0\].*'retain_energy'"),
        ({"steps": [{"project": "retain_energy", "geometry": "retian", "keep": 0.1}]}, "retian"),
        ({"deltas": {"change": "into"}}, "equal in every tensor"),
        ({"steps": [{"scale": 0.5, "layers": 9}]}, "has 3 blocks, 0 to 2; leave out 9"),
        ({"weights": {"change": float("nan")}}, r"^editing the model: weights\['change'\]: .*finite"),
        ({"weights": {"chnage": 0.5}}, "unknown delta 'chnage'; did you mean 'change'"),
    ],
)
def test_wrong_calls_are_refused_in_the_words_of_a_recipe(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(workspace.root)
    call: dict[str, Any] = {"into": "into", "deltas": {"change": "tuned"}, "steps": [{"scale": 0.5}], **changes}
    with pytest.raises(InputError, match=message):
        vecsurgery.edit(**call)


def test_without_steps_the_deltas_are_added_as_they_are(workspace: Workspace) -> None:
    edited = vecsurgery.edit(
        into=workspace.root / "into", deltas={"change": workspace.root / "tuned"}, weights={"change": 0.5}
    )
    into, tuned = (tensors_of(workspace.root / name)[QUERY].double() for name in ("into", "tuned"))
    assert same_bits(edited.read(QUERY), (into + 0.5 * (tuned - into)).to(torch.bfloat16))


def test_an_edit_says_in_one_line_what_it_is(workspace: Workspace) -> None:
    edited = vecsurgery.edit(
        into=workspace.root / "into",
        deltas={"change": workspace.root / "tuned", "other": workspace.root / "base"},
        steps=[{"scale": 0.5}],
        weights={"other": 0.3},
    )
    assert repr(edited) == f"Edited({workspace.root / 'into'} (llama, 3 blocks) + change + 0.3·other; scale)"
    plain = vecsurgery.edit(into=_model(workspace.root / "into"), deltas={"change": workspace.root / "tuned"})
    assert repr(plain) == "Edited(a model in memory (llama, 3 blocks) + change; no steps)"


@pytest.mark.parametrize("dtype", ["stored", "float32"])
def test_a_model_from_memory_is_written_with_the_keys_that_loaders_look_for(workspace: Workspace, dtype: str) -> None:
    model = _model(workspace.root / "into")
    model.config.architectures = None
    edited = vecsurgery.edit(into=model, deltas={"change": workspace.root / "tuned"}, dtype=dtype)
    folder = vecsurgery.write(edited, workspace.root / "written")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == ("bfloat16" if dtype == "stored" else dtype)
    loaded = _model(folder)
    assert type(loaded) is type(model)
    assert str(loaded.dtype) == f"torch.{config['dtype']}"
