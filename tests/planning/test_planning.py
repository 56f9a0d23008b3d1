"""The plan's numbers against the files, before and after the run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import models
from support.results import QUERY, tensors_of, write_adapter
from support.workspace import Workspace

import vecsurgery
from vecsurgery.errors import InputError
from vecsurgery.projectors.spectral import PROJECTOR as SPECTRAL

NORMS = [f"model.layers.{layer}.{name}_layernorm.weight" for layer in range(3) for name in ("input", "post_attention")]


def _data_bytes(folder: Path) -> int:
    """Bytes of the tensors of a folder: file sizes without their headers."""
    total = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            total += file.stat().st_size - 8 - int.from_bytes(opened.read(8), "little")
    return total


def _sums(plan: Any) -> tuple[int, int]:
    return sum(item.reads for item in plan.tensors.values()), sum(item.writes for item in plan.tensors.values())


def test_reads_and_writes_add_up_to_the_sizes_of_the_files(workspace: Workspace) -> None:
    plan = vecsurgery.plan(workspace.write())
    size = _data_bytes(workspace.root / "into")
    assert _sums(plan) == (2 * size, size)
    blocks = sum(tensor.nbytes for name, tensor in tensors_of(workspace.root / "into").items() if ".layers." in name)
    assert plan.geometry["retain"].reads == blocks
    assert plan.totals()["reads"] == 2 * size + blocks
    vecsurgery.run(workspace.write(), workspace.out)
    assert _data_bytes(workspace.out) == plan.totals()["writes"] == plan.written


def test_a_base_of_its_own_is_read_too_and_a_tensor_without_change_is_not(rain: Workspace) -> None:
    size = _data_bytes(rain.root / "into")
    assert _sums(vecsurgery.plan(rain.write()))[0] == 3 * size
    models.perturbed(rain.root / "base", rain.root / "tuned", seed=2, only="layers.1.mlp")
    changed = sum(tensor.nbytes for name, tensor in tensors_of(rain.root / "into").items() if "layers.1.mlp" in name)
    assert _sums(vecsurgery.plan(rain.write()))[0] == size + 2 * changed


def test_a_tensor_that_two_deltas_share_is_read_once(rain: Workspace) -> None:
    rain.recipe["deltas"]["second"] = {"tuned": "base", "base": "into"}
    assert _sums(vecsurgery.plan(rain.write()))[0] == 3 * _data_bytes(rain.root / "into")


def test_reads_of_an_adapter_are_its_file(workspace: Workspace) -> None:
    write_adapter(workspace.root / "adapter", {"model.layers.1.self_attn.q_proj": 32})
    workspace.recipe["deltas"] = {"skill": {"adapter": "./adapter"}}
    reads, _ = _sums(vecsurgery.plan(workspace.write()))
    assert reads == _data_bytes(workspace.root / "into") + _data_bytes(workspace.root / "adapter")


@pytest.mark.parametrize(("dtype", "factor"), [("float32", 2), ("bfloat16", 1), ("float16", 1)])
def test_writes_follow_the_output_type_and_shards_its_size(workspace: Workspace, dtype: str, factor: int) -> None:
    workspace.recipe["output"] = {"dtype": dtype, "shard_size": 30_000}
    plan = vecsurgery.plan(workspace.write())
    assert plan.written == factor * _data_bytes(workspace.root / "into") == sum(shard.nbytes for shard in plan.shards)
    vecsurgery.run(workspace.write(), workspace.out)
    assert {path.name: path.stat().st_size for path in workspace.out.glob("*.safetensors")} == {
        shard.file: shard.nbytes + len(shard.header()) for shard in plan.shards
    }
    assert plan.disk >= sum(path.stat().st_size for path in workspace.out.rglob("*") if path.is_file())


def test_the_geometry_file_is_no_larger_than_planned(workspace: Workspace) -> None:
    plan = vecsurgery.plan(workspace.write())
    vecsurgery.run(workspace.write(), workspace.out)
    assert (workspace.out / "surgery" / "retain.safetensors").stat().st_size <= plan.geometry["retain"].bytes
    positions = 24 * (12 - 1)
    assert (plan.geometry["retain"].tokens, plan.geometry["retain"].positions) == (24 * 12, positions)


def test_flops_are_those_of_the_products_with_the_geometry(workspace: Workspace) -> None:
    workspace.recipe["steps"][0] |= {"layers": 1, "modules": ["q"]}
    item = vecsurgery.plan(workspace.write()).tensors[QUERY]
    project, measure = 4 * 32 * 32 * 32, 6 * 32 * 32 * 32
    assert item.flops == project + measure
    assert vecsurgery.plan(workspace.write()).tensors[QUERY.replace("q_proj", "k_proj")].flops == 0


def test_adapters_are_planned_by_their_factors_until_a_step_may_have_made_them_dense(workspace: Workspace) -> None:
    for name in ("one", "two"):
        write_adapter(workspace.root / name, {"model.layers.1.self_attn.q_proj": 32})
    workspace.recipe["deltas"] = {name: {"adapter": f"./{name}"} for name in ("one", "two")}
    del workspace.recipe["geometry"]
    flops = []
    for first in ([], [{"project": "drop_rescale", "density": 0.5}], [{"merge": "ties", "as": "both"}]):
        workspace.recipe["steps"] = [*first, {"project": "spectral", "spectrum": "mean"}]
        flops.append(vecsurgery.plan(workspace.write()).tensors[QUERY].flops)
    factored, dense, merged = flops
    options = SPECTRAL.options(spectrum="mean")
    assert SPECTRAL.cost is not None
    expected = [SPECTRAL.cost((32, 32), ranks, options).flops for ranks in ([4, 4], [None, None], [None])]
    assert [factored, dense, merged] == expected


def test_the_dictionary_is_json_and_says_the_same(workspace: Workspace) -> None:
    workspace.recipe["steps"][0]["except"] = ["*q_proj*"]
    plan = vecsurgery.plan(workspace.write())
    content = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert content["totals"] == plan.totals()
    assert sum(item["writes"] for item in content["tensors"]) == plan.written
    assert [item["tensor"] for item in content["tensors"]] == list(plan.inputs.into.layout.order)
    assert {item["tensor"] for item in content["left_out"]} == {
        f"model.layers.{n}.self_attn.q_proj.weight" for n in range(3)
    }
    (others,) = content["others"]
    assert (others["treatment"], others["delta"]) == ("source", "change")
    assert set(others["tensors"]) == {*NORMS, "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"}


def test_the_text_names_what_is_skipped_and_how_it_is_treated(rain: Workspace) -> None:
    rain.recipe["steps"][0] |= {"layers": "0-1"}
    text = vecsurgery.plan(rain.write()).text()
    assert (
        "null_space: 9 tensors of instruct that are no block matrix are dropped: the embedding, 7 norms and the head"
        in text
    )
    assert (
        "null_space: 7 changed matrices of instruct are left out by the selection: model.layers.2.self_attn.q_proj"
        in text
    )
    assert "geometry thinking: 8 sites in 2 blocks" in text


def test_the_sums_say_what_they_are_made_of(workspace: Workspace) -> None:
    plan = vecsurgery.plan(workspace.write())
    text = plan.text()
    assert "step  retain_energy: project retain_energy, geometry retain, keep 0.1, energy 1, others source" in text
    assert "24 rows, 24 samples, 288 tokens, 264 positions" in text
    sums = dict(line.split(maxsplit=1) for line in text.partition("\nin sum\n")[2].splitlines())
    assert "of geometry (an upper bound" in sums["disk"]
    assert "set aside for tokenizer, card and report" in sums["disk"]
    phases = plan.phase_memory
    assert phases["measuring"] > phases["writing"] > phases["fitting"] == 0
    assert "measuring takes it (writing 102.4 kB)" in sums["memory"]
    workspace.recipe["output"] = {"keep_geometry": False}
    assert "deleted at the end" in vecsurgery.plan(workspace.write()).text()
    assert "known after measuring" in sums["compute"]
    workspace.recipe |= {"geometry": {}, "steps": []}
    assert "known after measuring" not in vecsurgery.plan(workspace.write()).text()


def test_actions_say_what_happens_to_each_tensor(rain: Workspace) -> None:
    rain.recipe["steps"] = [{**rain.recipe["steps"][0], "layers": 0}, {"scale": 0.5, "layers": "0-1"}]
    plan = vecsurgery.plan(rain.write())
    actions = {name: plan.tensors[name].action for name in ("model.norm.weight", NORMS[0], QUERY)}
    assert actions == {"model.norm.weight": "copy", NORMS[0]: "copy", QUERY: "scale"}
    assert plan.tensors[QUERY.replace("layers.1", "layers.0")].action == "edit"
    assert plan.tensors[QUERY.replace("layers.1", "layers.2")].action == "add"
    assert plan.tensors[QUERY.replace("layers.1", "layers.0")].steps == (("null_space", "edit"), ("scale", "scale"))


def test_planning_the_same_recipe_twice_gives_the_same_hash_and_any_change_another(workspace: Workspace) -> None:
    first = vecsurgery.plan(workspace.write()).hash
    assert vecsurgery.plan(workspace.write()).hash == first
    assert vecsurgery.plan(workspace.write(), overrides=["retain_energy.keep=0.2"]).hash != first
    models.write_texts(workspace.root / "retain.jsonl", seed=3)
    assert vecsurgery.plan(workspace.write()).hash != first


def _run(recipe: Path) -> None:
    vecsurgery.run(recipe, recipe.parent / "out")


@pytest.mark.parametrize("call", [vecsurgery.plan, vecsurgery.check, _run])
@pytest.mark.parametrize("options", [{"rank": 9}, {"preset": "tsv_m", "rank": 9}])
def test_a_rank_that_a_matrix_has_no_room_for_is_refused_before_anything_is_written(
    workspace: Workspace, call: Callable[[Path], object], options: dict[str, Any]
) -> None:
    workspace.recipe["deltas"]["other"] = {"tuned": "base"}
    workspace.recipe["steps"] = [{"project": "spectral", "id": "apart", **options}]
    del workspace.recipe["geometry"]
    with pytest.raises(InputError) as told:
        call(workspace.write())
    message = str(told.value)
    assert message.startswith("step 'apart', tensor 'model.layers.0.self_attn.k_proj.weight': ")
    assert "18 singular directions together (change 9, other 9)" in message
    assert "room for 16 orthogonal ones; give rank: 8 or less in place of 9" in message
    assert not [path for path in workspace.root.iterdir() if path.name.startswith("out")]
    workspace.recipe["steps"][0]["rank"] = 8
    assert vecsurgery.plan(workspace.write()).tensors[QUERY].action == "edit"


def test_factors_that_have_room_may_ask_for_more(workspace: Workspace) -> None:
    for name in ("one", "two"):
        write_adapter(workspace.root / name, {"model.layers.1.self_attn.q_proj": 32})
    workspace.recipe["deltas"] = {name: {"adapter": f"./{name}"} for name in ("one", "two")}
    workspace.recipe["steps"] = [{"project": "spectral", "rank": 30}]
    del workspace.recipe["geometry"]
    assert vecsurgery.plan(workspace.write()).tensors[QUERY].action == "edit"
    workspace.recipe["deltas"]["whole"] = {"tuned": "tuned"}
    with pytest.raises(InputError, match=r"keep 38 .*one 4, two 4, whole 30.*room for 32"):
        vecsurgery.plan(workspace.write())


def test_what_a_step_above_has_made_of_the_deltas_is_left_to_the_projector(workspace: Workspace) -> None:
    workspace.recipe["deltas"]["other"] = {"tuned": "base"}
    workspace.recipe["steps"] = [{"project": "low_rank", "rank": 2}, {"project": "spectral", "rank": 12}]
    del workspace.recipe["geometry"]
    record = vecsurgery.run(workspace.write(), workspace.out)
    assert record["matrices"][0]["steps"][-1]["facts"]["rank"] == 2.0


def test_the_decomposition_of_a_merge_is_counted(workspace: Workspace) -> None:
    workspace.recipe["deltas"]["other"] = {"tuned": "base"}
    del workspace.recipe["geometry"]
    found = {}
    for method in ("task_arithmetic", "iso_c"):
        workspace.recipe["steps"] = [{"merge": method, "as": "both"}]
        found[method] = vecsurgery.plan(workspace.write())
    plain, polar = (found[method].tensors for method in ("task_arithmetic", "iso_c"))
    assert plain[QUERY].flops == 0
    two_products, decomposition = 2 * 2 * 32**3, 9 * 32**3
    assert two_products + decomposition < polar[QUERY].flops < 3 * (two_products + decomposition)
    assert polar[QUERY.replace("q_proj", "k_proj")].flops < polar[QUERY].flops / 2
    assert polar[NORMS[0]].flops == polar["model.embed_tokens.weight"].flops == 0
    assert polar[QUERY].memory > plain[QUERY].memory
    assert "compute at most 0 flop" in found["task_arithmetic"].text()
    assert "compute at most 0 flop" not in found["iso_c"].text()


def test_each_step_says_on_one_line_what_it_takes(workspace: Workspace) -> None:
    (keep,) = workspace.recipe["steps"]
    workspace.recipe["deltas"]["other"] = {"tuned": "base"}
    workspace.recipe["steps"] = [
        {**keep, "delta": "other", "modules": ["q", "up"], "layers": [0, "1-2"]},
        {"scale": [0.5, 1], "layers": [0, 2], "except": ["*norm*"]},
        {"merge": "task_arithmetic", "as": "both"},
    ]
    lines = [line for line in vecsurgery.plan(workspace.write()).text().splitlines() if line.startswith("step ")]
    assert lines[0].startswith(
        "step  retain_energy: project retain_energy of other, geometry retain, modules q up, layers 0-2, keep 0.1, "
    )
    assert lines[1] == "step  scale: scale [0.5, 1.0] of change and other, layers 0 2, except *norm*"
    assert lines[2].startswith("step  task_arithmetic: merge task_arithmetic of change and other into both")
