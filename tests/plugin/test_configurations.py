"""A configuration that would go wrong is refused before mergekit writes anything, in words that say what to do."""

import pkgutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import models
from support.results import QUERY, same_bits, tensors_of

import vecsurgery
from tests.plugin.conftest import Family, merge, merged, refused
from vecsurgery import report
from vecsurgery.fits import Coefficients

pytestmark = pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")  # mergekit imports it by its old name


@pytest.fixture(scope="module")
def family(families: Callable[[str], Family]) -> Family:
    return families("float32")


def _null_space(family: Family, **parameters: Any) -> dict[str, Any]:
    given = {"geometry": str(family.root / "geometry.safetensors"), **parameters}
    return family.configuration("vecsurgery_null_space", parameters=given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"merge_method": "vecsurgery_nul_space"}, "did you mean 'vecsurgery_null_space'"),
        ({"parmeters": {}}, "unknown key 'parmeters'; did you mean 'parameters'"),
        ({"parameters": {"rtoll": 0.1}}, "unknown parameter 'rtoll'; did you mean 'rtol'"),
        ({"parameters": {"rtol": 2.0}}, "expected less than 1; got 2.0"),
        ({"parameters": {"rtol": "much"}}, "parameters for 'model.embed_tokens.weight'"),
        ({"parameters": {"rtol": 0.1}}, "geometry: this parameter is required"),
        ({"base_model": None}, "base_model is required"),
        ({"tokenizer_source": "base"}, "the rows of the result are those of base_model"),
        ({"slices": [{"sources": []}]}, "slices does not go with vecsurgery_null_space"),
        ({"dtype": "bfloat16"}, "leave dtype out (the computation is float32 or wider) and write out_dtype: bfloat16"),
        ({"parameters": {"geometry": [0.1, 0.2]}}, "expected one text for the whole model"),
        ({"models": [{"model": "nowhere/nothere"}]}, "fetching 'nowhere/nothere' from the hub"),
        ({"parameters": {"geometry": "nowhere.safetensors"}}, "it cannot be opened"),
    ],
)
def test_a_wrong_configuration_is_refused(
    family: Family, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = {key: value for key, value in {**_null_space(family), **changes}.items() if value is not None}
    assert message in refused(content, tmp_path)


def test_the_geometry_of_another_model_is_refused_by_its_fingerprint(family: Family, tmp_path: Path) -> None:
    content = {**_null_space(family), "base_model": str(family.root / "base")}
    told = refused(content, tmp_path)
    assert "was measured on" in told
    assert "has to be measured on base_model" in told


def test_a_geometry_without_a_matrix_that_changes_is_refused(family: Family, tmp_path: Path) -> None:
    recipe = family.recipe(
        geometry={"retain": {"data": str(family.root / "retain.jsonl")}},
        steps=[{"project": "null_space", "geometry": "retain", "modules": ["q", "k", "v"]}],
    )
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    vecsurgery.measure(tmp_path / "recipe.yaml", None, tmp_path / "part.safetensors")
    told = refused(_null_space(family, geometry=str(tmp_path / "part.safetensors")), tmp_path)
    assert "'model.layers.0.self_attn.o_proj.weight' reads, was not measured" in told


def test_an_adapter_and_two_models_of_one_name_are_refused(family: Family, tmp_path: Path) -> None:
    content = _null_space(family)
    (model,) = content["models"]
    content["models"] = [{"model": f"{model['model']}+adapter"}]
    assert "mergekit rounds an adapter" in refused(content, tmp_path)
    content["models"] = [model, {"model": str(family.root / "two"), "parameters": {"name": "one"}}]
    assert "two models are called 'one'" in refused(content, tmp_path)


def test_coefficients_of_another_model_are_refused(family: Family, tmp_path: Path) -> None:
    found = Coefficients("amplify", "amplify", "one", {"model.layers.7.mlp.up_proj.weight": 2.0}, {}, ())
    (tmp_path / "file.json").write_text(found.to_json())
    content = _null_space(family, coefficients=str(tmp_path / "file.json"))
    assert "is no matrix of base_model" in refused(content, tmp_path)
    content = family.configuration("vecsurgery_scale")
    assert "needs coefficients" in refused(content, tmp_path)


def test_tensors_that_mergekit_would_leave_out_are_named(tmp_path: Path) -> None:
    models.checkpoint(tmp_path / "into", seed=1, num_hidden_layers=1, attention_bias=True)
    models.perturbed(tmp_path / "into", tmp_path / "one", seed=2)
    told = refused(Family(tmp_path).configuration("vecsurgery_trim", parameters={"density": 0.5}), tmp_path)
    assert "mergekit does not know the tensors model.layers.0.self_attn.q_proj.bias" in told
    assert "would leave them out of the result without a word" in told


@pytest.mark.parametrize(
    ("rank", "where"),
    [
        (60, "merged.yml: step 'spectral', tensor 'model.layers.0.self_attn."),
        ([{"filter": "layers.1.mlp", "value": 60}, {"value": 4}], "tensor 'model.layers.1.mlp."),
        ([4, 60], "layers.1."),  # found when mergekit comes to the block; its folder is still empty
    ],
)
def test_options_for_which_a_matrix_has_no_room_leave_nothing_behind(
    family: Family, rank: Any, where: str, tmp_path: Path
) -> None:
    told = refused(family.configuration("vecsurgery_spectral", "one", "two", parameters={"rank": rank}), tmp_path)
    assert where in told
    assert " or less in place of 60, or rank: auto" in told


def test_options_are_asked_of_the_tensors_that_have_them(family: Family, tmp_path: Path) -> None:
    parameters = {"rank": [{"filter": "norm", "value": 60}, {"value": 4}]}
    content = family.configuration("vecsurgery_spectral", "one", "two", parameters=parameters)
    assert QUERY in merged(content, tmp_path / "merged")


def test_gradients_are_mergekits_own(family: Family, tmp_path: Path) -> None:
    parameters = {"density": 1.0, "weight": [0.0, 1.0]}
    found = merged(family.configuration("vecsurgery_trim", parameters=parameters), tmp_path / "merged")
    into, one = (tensors_of(family.root / name) for name in ("into", "one"))
    assert same_bits(found[QUERY.replace("layers.1", "layers.0")], into[QUERY.replace("layers.1", "layers.0")])
    torch.testing.assert_close(found[QUERY], one[QUERY], rtol=0, atol=1e-6)
    assert same_bits(found["model.norm.weight"], into["model.norm.weight"])  # the first value, not the last


def test_what_projectors_warn_of_is_told_at_the_end_as_a_run_tells_it(family: Family, tmp_path: Path) -> None:
    result = merge(_null_space(family, rtol=0.001), tmp_path / "merged")
    assert result.exit_code == 0
    family.run(tmp_path / "run", steps=[{"project": "null_space", "geometry": "retain", "rtol": 0.001}])
    told = report.warnings(report.read(tmp_path / "run"))
    assert "null_space, one: model.layers.0.self_attn.q_proj.weight: only " in told[0]
    assert "more like it)" in told[0]
    assert result.stderr.splitlines() == [f"warning: {line}" for line in told]


def test_mergekits_own_methods_work_as_ever(family: Family, tmp_path: Path) -> None:
    content = family.configuration("task_arithmetic", parameters={"weight": 0.5})
    found = merged(content, tmp_path / "merged")
    into, one = (tensors_of(family.root / name) for name in ("into", "one"))
    torch.testing.assert_close(found[QUERY], (into[QUERY] + one[QUERY]) / 2)


@pytest.mark.parametrize(
    ("place", "where"), [("whole", "parameters"), ("model", "parameters of {one}"), ("slice", "parameters of {one}")]
)
def test_a_parameter_that_no_method_of_mergekit_has_is_refused(
    family: Family, place: str, where: str, tmp_path: Path
) -> None:
    content = family.configuration("ties", parameters={"density": 0.5, "weight": 1.0})
    if place == "whole":
        content["parameters"]["preset"] = "sift"
    else:
        content["models"][0]["parameters"] = {"preset": "sift"}
    if place == "slice":
        content["slices"] = [{"sources": [{**content.pop("models")[0], "layer_range": [0, 2]}]}]
    told = refused(content, tmp_path)
    assert f"{where.format(one=family.root / 'one')}: unknown parameter 'preset' of ties" in told
    assert "its parameters are int8_mask, normalize, rescale, lambda, weight, density" in told


def test_what_another_method_of_mergekit_has_is_a_warning(family: Family, tmp_path: Path) -> None:
    content = family.configuration("passthrough", parameters={"int8_mask": True, "scale": 2.0}, name="twice")
    del content["base_model"]
    result = merge(content, tmp_path / "merged")
    assert result.exit_code == 0, (result.output, result.exception)
    told = " ".join(result.output.split())
    assert "mergekit has no key 'name' and ignores it" in told
    assert "passthrough has no parameter 'int8_mask', and mergekit ignores it; its parameters are scale" in told
    assert "wrote the model" not in told


def test_a_misspelt_parameter_of_mergekits_own_methods_is_refused(family: Family, tmp_path: Path) -> None:
    told = refused(family.configuration("task_arithmetic", parameters={"wieght": 0.5}), tmp_path)
    assert "unknown parameter 'wieght' of task_arithmetic (did you mean 'weight'?)" in told


def test_the_last_line_says_where_the_model_was_written(family: Family, tmp_path: Path) -> None:
    content = family.configuration("vecsurgery_trim", parameters={"density": 0.5})
    result = merge(content, tmp_path / "merged", "--no-quiet")
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stderr.splitlines()[-1] == f"wrote the model to {tmp_path / 'merged'}"
    assert "wrote the model" not in result.stdout


def test_the_console_script_is_mergekits_command_under_its_own_name(capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    with pytest.raises(SystemExit) as ended:
        pkgutil.resolve_name(project["scripts"]["vecsurgery-mergekit"])(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert "vecsurgery-mergekit" in shown
    assert "merge_method: vecsurgery_null_space" in shown
    assert "--out-shard-size" in shown


def test_a_transposed_matrix_is_merged_as_a_run_does(tmp_path: Path) -> None:
    models.checkpoint(tmp_path / "into", "gpt2", seed=1)
    models.perturbed(tmp_path / "into", tmp_path / "one", seed=2)
    family = Family(tmp_path)
    expected = family.run(tmp_path / "run", geometry={}, steps=[{"project": "low_rank", "rank": 2}])
    found = merged(family.configuration("vecsurgery_low_rank", parameters={"rank": 2}), tmp_path / "merged")
    names = [name for name, tensor in expected.items() if name in found and not same_bits(found[name], tensor)]
    assert len(found) == len(expected)
    assert not names
