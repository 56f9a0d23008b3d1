"""What `vecsurgery run` writes for a recipe that only merges is what mergekit writes, method by method."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mergekit.merge_methods import merge_tensors, registered_methods
from safetensors.torch import load_file
from support import models
from torch import Tensor

import vecsurgery
from vecsurgery.plugin.methods import PREFIX
from vecsurgery.report import pictures
from vecsurgery.surgery import writing

pytestmark = pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")  # mergekit imports it by its old name
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Row:
    """A method as it stands in a recipe, and what mergekit's configuration says beside it."""

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    deltas: tuple[str, ...] = ("math", "code")
    weights: Mapping[str, float] = field(default_factory=dict)
    base: bool = True
    """Whether mergekit is given `into` as its base."""
    listed: bool = False
    """Whether mergekit wants `into` among its models too."""
    into: str = "into"

    def label(self) -> str:
        """The method and its deltas."""
        return f"{self.method}-{'-'.join(self.deltas)}"

    def on_few_tensors(self) -> "Row":
        """The same on fine-tunes of `small`, which change some of its tensors."""
        few = {"math": "small-math", "part": "small-math", "code": "small-code", "chat": "small-chat"}
        options = {
            key: {few[name]: number for name, number in value.items()} if isinstance(value, dict) else value
            for key, value in self.options.items()
        }
        weights = {few[name]: number for name, number in self.weights.items()}
        return replace(self, options=options, deltas=tuple(few[n] for n in self.deltas), weights=weights, into="small")


WEIGHTS = {"math": 1.0, "code": 0.7}
THREE = ("math", "code", "chat")
ROWS = [
    Row("task_arithmetic", {"lambda": 0.8}, weights=WEIGHTS),
    Row("task_arithmetic", {"normalize": True}, THREE, weights=WEIGHTS),
    Row("ties", {"density": 0.5}, weights=WEIGHTS),
    Row("ties", {"density": {"math": 0.2, "code": 0.9}, "int8_mask": True}, weights=WEIGHTS),
    Row("ties", {"density": [{"filter": "self_attn", "value": [0.1, 0.6]}, {"value": 0.3}]}, weights=WEIGHTS),
    Row("dare_ties", {"density": 1.0}, weights=WEIGHTS),
    Row("dare_linear", {"density": 1.0, "rescale": False}, weights=WEIGHTS),
    Row("della", {"density": 1.0}, weights=WEIGHTS),
    Row("della_linear", weights=WEIGHTS),
    Row("breadcrumbs", {"density": 0.6, "gamma": 0.05}, weights=WEIGHTS),
    Row("breadcrumbs_ties", {"density": 0.6}, weights=WEIGHTS),
    Row("sce", {"select_topk": 0.4}),
    Row("ram", {"epsilon": 0.01}),
    Row("ramplus_tl", {"epsilon": 0.01}),
    Row("linear", weights=WEIGHTS, base=False),
    Row("linear", {"normalize": False}, ("part", "code"), weights={"part": 0.4}, base=False),
    Row("slerp", {"t": [{"filter": "mlp", "value": [0.0, 1.0]}, {"value": 0.3}]}, ("math",), listed=True),
    Row("nuslerp", weights=WEIGHTS),
    Row("nuslerp", {"base_model": False, "nuslerp_flatten": False}, weights=WEIGHTS, base=False),
    Row("multislerp", weights=WEIGHTS),
    Row("multislerp", {"base_model": False}, THREE, weights=WEIGHTS, base=False),
    Row("multislerp", {"base_model": False, "normalize_weights": False}, weights=WEIGHTS, base=False),
    Row("karcher", {"max_iter": 5}, base=False),
    Row("model_stock"),
    Row("arcee_fusion", {}, ("math",)),
    Row("nearswap", {"t": 0.01}, ("math",)),
    Row("passthrough", {"scale": 0.5}, ("math",), base=False),
    Row("ties", {"density": 0.5}, ("part", "code")),
    Row("arcee_fusion", {}, ("gpt2-math",), into="gpt2"),
    Row("model_stock", {"filter_wise": True}, ("gpt2-math", "gpt2-code"), into="gpt2"),
    Row("ties", {"density": 0.5}, ("tied-math", "tied-code"), into="tied"),
    Row("linear", {}, ("tied-math", "tied-code"), weights={"tied-math": 0.7}, base=False, into="tied"),
    Row("karcher", {}, ("tied-math", "tied-code"), base=False, into="tied"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny float32 checkpoints; `part` differs from `into` in its MLPs alone, and those of `small` in few tensors."""
    root = tmp_path_factory.mktemp("merges")
    into = models.checkpoint(root / "into", seed=1, num_hidden_layers=2)
    for seed, name in enumerate(THREE):
        models.perturbed(into, root / name, seed=seed + 2)
    models.perturbed(into, root / "part", seed=9, only="mlp")
    small = models.checkpoint(root / "small", seed=1, num_hidden_layers=2, hidden_size=16, intermediate_size=16)
    for seed, (name, only) in enumerate((("small-math", "mlp"), ("small-code", "layers.0"), ("small-chat", "q_proj"))):
        models.perturbed(small, root / name, seed=seed + 2, only=only)
    gpt2 = models.checkpoint(root / "gpt2", "gpt2", seed=1, n_layer=1)
    for seed, name in enumerate(("gpt2-math", "gpt2-code")):
        models.perturbed(gpt2, root / name, seed=seed + 2)
    tied = models.checkpoint(root / "tied", "qwen2", seed=1, dtype=torch.bfloat16, num_hidden_layers=1)
    for seed, name in enumerate(("tied-math", "tied-code")):
        models.perturbed(tied, root / name, seed=seed + 2)
    return root


@pytest.fixture(autouse=True)
def _without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "layers", lambda *args, **kwargs: "<svg></svg>")


def _tensors(folder: Path) -> Tensors:
    found: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def recipe_of(row: Row) -> dict[str, Any]:
    step: dict[str, Any] = {"merge": row.method, "as": "skills", **row.options}
    if row.weights:
        step["weights"] = dict(row.weights)
    deltas = {name: {"tuned": name} for name in row.deltas}
    return {"into": row.into, "deltas": deltas, "steps": [step], "gates": []}


def _ours(root: Path, row: Row, out: Path) -> Tensors:
    recipe = root / f"{out.name}.yaml"
    recipe.write_text(yaml.safe_dump(recipe_of(row), sort_keys=False))
    vecsurgery.run(recipe, out)
    return _tensors(out)


def _theirs(root: Path, row: Row, out: Path) -> Tensors:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    shared = {key: value for key, value in row.options.items() if not isinstance(value, dict) and key != "base_model"}
    own = {key: value for key, value in row.options.items() if isinstance(value, dict)}
    listed: list[dict[str, Any]] = [{"model": str(root / row.into)}] if row.listed else []
    for name in row.deltas:
        numbers = {"weight": row.weights.get(name, 1.0), **{key: value[name] for key, value in own.items()}}
        listed.append({"model": str(root / name), "parameters": numbers})
    base = {"base_model": str(root / row.into)} if row.base else {}
    content = {"merge_method": row.method, "models": listed, "dtype": "float32", "parameters": shared, **base}
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(content), str(out), options)
    return _tensors(out)


def ulps(first: Tensor, second: Tensor) -> int:
    """The largest distance of two tensors, in numbers of the first one's type that lie between."""
    integers, most = (torch.int32, 0x7FFFFFFF) if first.dtype == torch.float32 else (torch.int16, 0x7FFF)
    ordered = []
    for tensor in (first, second.to(first.dtype)):
        bits = tensor.contiguous().view(integers).to(torch.int64)
        ordered.append(torch.where(bits < 0, -(bits & most), bits))
    return int((ordered[0] - ordered[1]).abs().max())


@pytest.mark.parametrize("row", ROWS, ids=Row.label)
def test_a_recipe_that_only_merges_writes_what_mergekit_writes(root: Path, row: Row, tmp_path: Path) -> None:
    ours, theirs = _ours(root, row, tmp_path / "ours"), _theirs(root, row, tmp_path / "theirs")
    assert set(ours) == set(theirs)
    assert {name: ulps(ours[name], theirs[name]) for name in ours if ulps(ours[name], theirs[name]) > 1} == {}
    into = _tensors(root / row.into)
    assert any(not torch.equal(ours[name], into[name]) for name in ours)


@pytest.mark.parametrize("row", [row for row in ROWS if row.into == "into"], ids=Row.label)
def test_tensors_that_no_delta_or_only_some_change_are_what_mergekit_writes(
    root: Path, row: Row, tmp_path: Path
) -> None:
    row = row.on_few_tensors()
    recipe = recipe_of(row)
    deltas = {name: root / name for name in row.deltas}
    ours = vecsurgery.edit(into=root / "small", deltas=deltas, steps=recipe["steps"]).state_dict()
    theirs = _theirs(root, row, tmp_path / "theirs")
    assert set(ours) == set(theirs)
    assert {name: ulps(ours[name], theirs[name]) for name in ours if ulps(ours[name], theirs[name]) > 1} == {}


def test_every_method_of_mergekit_has_a_row() -> None:
    names = {method.spec.name for method in registered_methods()}
    assert {row.method for row in ROWS} == {name for name in names if not name.startswith(PREFIX)}


@pytest.mark.parametrize("method", ["dare_ties", "dare_linear", "della", "della_linear"])
def test_a_random_method_draws_for_each_tensor_from_seed_step_deltas_and_name(root: Path, method: str) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    step = {"merge": method, "as": "skills", "density": 0.5, "seed": 3, "weights": WEIGHTS}
    edited = vecsurgery.edit(into=root / "into", deltas={name: root / name for name in WEIGHTS}, steps=[step])
    ours = edited.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    checkpoints = [_tensors(root / name) for name in ("into", *WEIGHTS)]
    for name in ("model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"):
        digest = hashlib.sha256("\n".join(["3", method, *WEIGHTS, name]).encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:6], "big"))
            parameters = {"weight": list(WEIGHTS.values()), "density": 0.5}
            tensors = [tensors[name] for tensors in checkpoints]
            expected = merge_tensors(tensors, method, parameters=parameters, base_index=0)
        assert ulps(ours[name], expected) <= 1
        assert torch.equal(edited.read(name), ours[name])


def test_an_embedding_that_is_written_by_rows_is_merged_as_a_whole(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = Row("ties", {"density": 0.3}, weights=WEIGHTS)
    whole = _ours(root, row, tmp_path / "whole")
    monkeypatch.setattr(writing, "ROW_CHUNK", 2000)
    record = vecsurgery.run(root / "whole.yaml", tmp_path / "rows")
    assert all(torch.equal(values, whole[name]) for name, values in _tensors(tmp_path / "rows").items())
    first = vecsurgery.report.record.read(tmp_path / "whole")
    assert record["inputs"] == first["inputs"]  # hashes of whole tensors, however they were read
