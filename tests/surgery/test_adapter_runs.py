"""LoRA adapters through a whole run: equal to a float64 computation, and still adapters of their rank after it."""

import json
from typing import Any

import pytest
import torch
from support.results import QUERY, fed, in_float32, require_close, same_bits, tensors_of, write_adapter
from support.workspace import Workspace
from torch import Tensor

import vecsurgery
from tests.blackbox import reference
from vecsurgery.delta import Factored

TARGETS = {
    f"model.layers.{layer}.self_attn.{name}": width
    for layer in range(3)
    for name, width in (("q_proj", 32), ("v_proj", 16))
}
SCALE = 8 / 4
KEEP = 0.1


@pytest.fixture
def adapted(workspace: Workspace) -> Workspace:
    in_float32(workspace)
    write_adapter(workspace.root / "adapter", TARGETS)
    workspace.recipe["deltas"] = {"skill": {"adapter": "./adapter"}}
    return workspace


def _product(workspace: Workspace, name: str) -> Tensor:
    tensors = tensors_of(workspace.root / "adapter")
    prefix = f"base_model.model.{name.removesuffix('.weight')}"
    return SCALE * tensors[f"{prefix}.lora_B.weight"].double() @ tensors[f"{prefix}.lora_A.weight"].double()


def _changes(workspace: Workspace) -> dict[str, Tensor]:
    into, written = tensors_of(workspace.root / "into"), tensors_of(workspace.out)
    return {
        name: written[name].double() - into[name].double() for name in into if not same_bits(written[name], into[name])
    }


def test_an_adapter_through_a_run_equals_the_float64_reference(adapted: Workspace) -> None:
    record = vecsurgery.run(adapted.write(), adapted.out)
    changes = _changes(adapted)
    inputs = reference.recorded_inputs(adapted.root / "into", fed(adapted))
    assert set(changes) == {f"{module}.weight" for module in TARGETS}
    for name, change in changes.items():
        expected = reference.retain_energy(_product(adapted, name), inputs[name], KEEP, 32)
        require_close(change, expected, 1e-4)
    assert record["deltas"]["skill"]["adapter"]["reference"] == "./adapter"
    assert record["deltas"]["skill"]["tuned"] is None


@pytest.mark.parametrize("step", [{"project": "retain_energy", "keep": KEEP}, {"project": "null_space", "rtol": 0.5}])
def test_an_edited_adapter_keeps_its_rank_and_stays_factored(adapted: Workspace, step: dict[str, Any]) -> None:
    adapted.recipe["steps"] = [{**step, "geometry": "retain"}, {"scale": 0.5}]
    plan = vecsurgery.run(adapted.write(), adapted.out)
    geometry = {"retain": adapted.out / "surgery" / "retain.safetensors"}
    edited = vecsurgery.edit(
        into=adapted.root / "into",
        deltas={"skill": {"adapter": adapted.root / "adapter"}},
        steps=adapted.recipe["steps"],
        geometry=geometry,
    )
    total = edited.edit(QUERY, figures=True).total
    assert isinstance(total, Factored)
    assert total.left.shape == (32, 4)
    assert total.right.shape == (4, 32)
    assert int(torch.linalg.matrix_rank(total.left.double() @ total.right.double())) == 4
    require_close(_changes(adapted)[QUERY], total.dense(), 1e-4)
    assert plan["matrices"][0]["steps"][1]["facts"] == {"factor": 0.5}


def test_a_base_with_an_adapter_as_tuned_equals_the_adapter_itself(adapted: Workspace) -> None:
    vecsurgery.run(adapted.write(), adapted.out)
    adapted.recipe["deltas"] = {"skill": {"tuned": "into+./adapter"}}
    record = vecsurgery.run(adapted.write(), adapted.root / "by-reference")
    direct, named = tensors_of(adapted.out), tensors_of(adapted.root / "by-reference")
    assert all(same_bits(direct[name], named[name]) for name in direct)
    assert record["deltas"]["skill"]["tuned"]["reference"] == "into+./adapter"


def test_an_adapter_on_another_base_is_added_to_the_difference_of_the_bases(adapted: Workspace) -> None:
    adapted.recipe |= {"deltas": {"skill": {"tuned": "base+./adapter", "base": "into"}}, "geometry": {}}
    adapted.recipe["steps"] = [{"scale": 1.0}]
    vecsurgery.run(adapted.write(), adapted.out)
    base, written = tensors_of(adapted.root / "base"), tensors_of(adapted.out)
    for name in base:
        expected = base[name].double()
        if name.removesuffix(".weight") in TARGETS:
            expected = expected + _product(adapted, name)
        assert torch.allclose(written[name].double(), expected, atol=1e-6), name


def test_two_adapters_are_added_with_their_weights(adapted: Workspace) -> None:
    write_adapter(adapted.root / "second", {"model.layers.1.self_attn.q_proj": 32}, seed=6)
    adapted.recipe |= {
        "deltas": {"one": {"adapter": "./adapter"}, "two": {"adapter": "./second"}},
        "weights": {"two": -0.5},
        "steps": [{"scale": 1.0}],
        "geometry": {},
    }
    vecsurgery.run(adapted.write(), adapted.out)
    first = _product(adapted, QUERY)
    second = tensors_of(adapted.root / "second")
    prefix = "base_model.model.model.layers.1.self_attn.q_proj"
    product = SCALE * second[f"{prefix}.lora_B.weight"].double() @ second[f"{prefix}.lora_A.weight"].double()
    require_close(_changes(adapted)[QUERY], first - 0.5 * product, 1e-4)


def test_an_adapter_that_fits_nothing_is_refused_by_its_tensor(adapted: Workspace) -> None:
    write_adapter(adapted.root / "alien", {"model.layers.7.self_attn.q_proj": 32})
    adapted.recipe["deltas"] = {"skill": {"adapter": "./alien"}}
    with pytest.raises(vecsurgery.errors.InputError, match=r"layers\.7\.self_attn\.q_proj"):
        vecsurgery.run(adapted.write(), adapted.out)
    assert json.loads((adapted.root / "alien" / "adapter_config.json").read_text())["r"] == 4
