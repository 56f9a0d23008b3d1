"""Loading: what a valid recipe says, and what every wrong one is told."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from vecsurgery.errors import InputError
from vecsurgery.recipe import Around, Between, Method, Recipe, RecipeError, from_mapping, load, parse_steps

Read = Callable[..., Recipe]
Problems = Callable[..., list[str]]


def test_a_valid_recipe_is_read_with_the_documented_defaults(read: Read, valid: str, folder: Path) -> None:
    recipe = read(valid)
    assert recipe.into.path == folder / "original"
    assert recipe.deltas["change"].base is None
    assert recipe.deltas["lora"].adapter is not None
    geometry = recipe.geometry["kept"]
    assert geometry.data is not None
    assert geometry.data.data == (folder / "retain.jsonl",)
    assert (geometry.data.template, geometry.data.seed, geometry.data.limit) == ("auto", 0, None)
    assert (geometry.model, geometry.tokens, geometry.skip_first, geometry.max_directions) == (None, "all", 1, 1024)
    project, scale = recipe.steps
    assert (project.id, project.verb, project.selection.deltas) == ("soft", "project", ("change",))
    assert project.options is not None
    assert project.options.model_dump()["keep"] == 1e-3
    assert (scale.id, scale.number, scale.selection.layers) == ("scale", 0.5, (0, 1, 2, 3))
    assert scale.selection.deltas == ("change", "lora")
    assert recipe.weights == {"change": 2.0}
    assert (recipe.output.dtype, recipe.output.shard_size, recipe.output.keep_geometry) == ("stored", 5 * 10**9, True)


def test_a_recipe_without_steps_is_plain_addition(read: Read) -> None:
    assert read("into: original\ndeltas: {change: {tuned: tuned}}\n").steps == ()


def test_all_problems_come_at_once_with_their_lines(problems: Problems) -> None:
    found = problems(
        "into: original\n"
        "deltas: {change: {tuned: tuned, bse: x}}\n"
        "geometry:\n"
        "  kept: {data: missing.jsonl, limit: 0}\n"
        "steps:\n"
        "  - {project: sotf, id: first, geometry: kept, keep: 0.1}\n"
        "  - project: soft\n"
        "    geometry: kpt\n"
        "    keep: 2\n"
        "    delta: chnge\n"
        "outptu: {}\n"
    )
    assert [each.split(": ")[:2] for each in found] == [
        ["2", "deltas.change.bse"],
        ["4", "geometry.kept.limit"],
        ["4", "geometry.kept.data"],
        ["6", "steps[0].project"],
        ["8", "steps[1].geometry"],
        ["9", "steps[1].keep"],
        ["10", "steps[1].delta"],
        ["11", "outptu"],
    ]
    text = "\n".join(found)
    for match in ("'base'", "'soft'", "'kept'", "'change'", "'output'"):
        assert f"did you mean {match}?" in text
    assert "missing.jsonl" in text


def test_the_error_is_an_input_error_whose_text_holds_every_problem(read: Read) -> None:
    with pytest.raises(InputError) as caught:
        read("into: 3\nsteps: x\n")
    assert isinstance(caught.value, RecipeError)
    assert caught.value.exit_code == 2
    assert all(str(problem) in str(caught.value) for problem in caught.value.problems)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("key", ["fit", "merge", "judge"])
def test_what_this_release_does_not_know_is_an_unknown_key(problems: Problems, valid: str, key: str) -> None:
    (found,) = problems(f"{valid}{key}: {{}}\n")
    assert found.startswith(f"11: {key}: unknown key '{key}'")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("- {blend: x}", "steps[0].blend: unknown key 'blend'; a step has one of: project, fit, merge, scale"),
        (
            "- {porject: soft, geometry: kept, keep: 0.1}",
            "steps[0].porject: unknown key 'porject'; did you mean 'project'?",
        ),
        (
            "- {project: soft, scale: 1}",
            "steps[0]: a step has one of the keys project, fit, merge, scale; got project and scale",
        ),
        ("- {id: x}", "steps[0]: a step needs one of the keys: project, fit, merge, scale"),
        ("- soft", "steps[0]: expected a map"),
        ("- {project: soft, geometry: kept}", "steps[0]: give exactly one of keep and strength"),
        ("- {project: soft, geometry: kept, keep: '0.1'}", "steps[0].keep: expected a number; got '0.1'"),
        ("- {project: soft, geometry: kept, keep: true}", "steps[0].keep: expected a number; got true"),
        ("- {project: soft, geometry: kept, keep: .nan}", "steps[0].keep: a number must be finite"),
        ("- {project: soft, geometry: kept, keep: 1.0}", "steps[0].keep: expected less than 1; got 1.0"),
        ("- {project: soft, geometry: kept, keep: 0.1, forget: kept}", "steps[0].forget: unknown key 'forget'"),
        (
            "- {project: hard, geometry: kept, keep: 0.2}",
            "steps[0].keep: unknown key 'keep': it is an option of soft; hard has geometry, rtol",
        ),
        (
            "- {project: hard, geometry: kept, balance: 1}",
            "steps[0].balance: unknown key 'balance': it is an option of blend; hard has geometry, rtol",
        ),
        ("- {project: soft, keep: 0.1}", "steps[0].geometry: this key is required"),
        ("- {project: 3}", "steps[0].project: expected the name of a projector (hard, soft); got a number 3"),
        ("- {scale: true}", "steps[0].scale: expected a number"),
        ("- {scale: }", "steps[0].scale: this key is required"),
        ("- {scale: 1, modules: [q, gat]}", "did you mean 'gate'?"),
        ("- {scale: 1, layers: 3-1}", "steps[0].layers: expected a range"),
        ("- {scale: 1, others: drop}", "steps[0].others: unknown key 'others'"),
        ("- {scale: 1, delta: change, deltas: [lora]}", "steps[0].deltas: give one of delta and deltas"),
        ("- {scale: 1, deltas: [lora, lora]}", "steps[0].deltas[1]: the delta 'lora' stands twice"),
        ("- {scale: 1, id: a.b}", "steps[0].id: 'a.b' cannot be a step's id"),
        ("- {scale: 1, id: output}", "steps[0].id: 'output' cannot be a step's id"),
    ],
)
def test_a_wrong_step_is_refused_with_its_reason(problems: Problems, line: str, says: str) -> None:
    start = "into: original\ndeltas: {change: {tuned: tuned}, lora: {adapter: adapter}}\n"
    found = problems(f"{start}geometry: {{kept: {{data: retain.jsonl}}}}\nsteps:\n  {line}\n")
    assert len(found) == 1
    assert says in found[0]
    assert found[0].startswith("5: ")


def test_two_steps_with_the_same_id_are_refused(problems: Problems, valid: str) -> None:
    (found,) = problems(valid.replace("weights", "  - {scale: 2}\nweights"))
    assert "steps[1] has the id 'scale' already" in found


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("deltas: {}", "deltas: expected a map from names"),
        ("deltas: {x: }", "deltas.x: expected a map with some of the keys tuned, base, adapter, file; got nothing"),
        ("deltas: {x: {}}", "deltas.x: a delta has exactly one of the keys tuned, adapter and file; got none"),
        ("deltas: {x: {tuned: tuned, adapter: adapter}}", "got tuned and adapter"),
        ("deltas: {x: {adapter: adapter, base: tuned}}", "deltas.x.base: base goes with tuned"),
        ("deltas: {x: {file: original}}", "deltas.x.file: there is no delta.json in"),
        ("deltas: {a b: {tuned: tuned}}", "deltas.a b: 'a b' cannot be a name"),
        ("deltas: {x: {tuned: ./gone}}", "deltas.x.tuned: there is no folder"),
    ],
)
def test_a_wrong_delta_is_refused_with_its_reason(problems: Problems, line: str, says: str) -> None:
    assert any(says in found for found in problems(f"into: original\n{line}\n"))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("limit: 3", "geometry.g: a geometry needs data"),
        ("file: old.safetensors, tokens: all", "geometry.g.file: file stands alone"),
        ("file: gone.safetensors", "geometry.g.file: there is no file"),
        ("data: [retain.jsonl, gone.jsonl]", "geometry.g.data[1]: there is no file"),
        ("data: original", "is a folder; expected a file"),
        ("data: []", "geometry.g.data: expected text or a list of texts; the list is empty"),
        ("data: retain.jsonl, rows: 5-2", "geometry.g.rows: expected"),
        ("data: retain.jsonl, seed: true", "geometry.g.seed: expected a whole number; got true"),
        ("data: retain.jsonl, max_length: 2.5", "geometry.g.max_length: expected a whole number; got 2.5"),
        ("data: retain.jsonl, template: gone.jinja", "geometry.g.template: there is no file"),
        ("data: retain.jsonl, tokens: {between: [a]}", "geometry.g.tokens: expected between"),
        ("data: retain.jsonl, tokens: {around: [a], after: -1}", "geometry.g.tokens: expected a whole number ≥ 0"),
        ("data: retain.jsonl, tokens: thinking", "geometry.g.tokens: expected all, response"),
        ("data: retain.jsonl, max_direction: 3", "did you mean 'max_directions'?"),
        ("data: retain.jsonl, model: ./gone", "geometry.g.model: there is no folder"),
    ],
)
def test_a_wrong_geometry_is_refused_with_its_reason(problems: Problems, keys: str, says: str) -> None:
    found = problems(f"into: original\ndeltas: {{x: {{tuned: tuned}}}}\ngeometry: {{g: {{{keys}}}}}\n")
    assert any(says in each for each in found)


def test_the_keys_of_a_geometry_are_read(read: Read, folder: Path) -> None:
    recipe = read(
        "into: original\ndeltas: {x: {tuned: tuned}}\n"
        "geometry:\n"
        "  a: {data: [retain.jsonl, more.jsonl], template: chat.jinja, rows: 0-99, limit: 5, max_tokens: 1000,\n"
        "      max_length: 64, seed: 3, model: tuned, tokens: {between: [<a>, </a>]}, skip_first: 0}\n"
        "  b: {data: retain.jsonl, tokens: {around: [</a>]}}\n"
        "  c: {file: old.safetensors}\n"
    )
    first, second, third = (recipe.geometry[name] for name in "abc")
    assert first.data is not None
    assert first.data.data == (folder / "retain.jsonl", folder / "more.jsonl")
    assert first.data.template == str(folder / "chat.jinja")
    assert (first.data.rows, first.data.max_length) == ((0, 99), 64)
    assert (first.tokens, first.skip_first) == (Between("<a>", "</a>"), 0)
    assert first.model is not None
    assert first.model.path == folder / "tuned"
    assert second.tokens == Around(("</a>",), 1, 0)
    assert (third.data, third.file) == (None, folder / "old.safetensors")


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500mb", 5 * 10**8), ("1.5 KB", 1500), ("12345", 12345)],
)
def test_shard_sizes_are_decimal(read: Read, valid: str, text: str, size: int) -> None:
    assert read(f"{valid}output: {{shard_size: {text}}}\n").output.shard_size == size


@pytest.mark.parametrize("text", ["5GiB", "0", "-1GB", "true", "big"])
def test_other_shard_sizes_are_refused(problems: Problems, valid: str, text: str) -> None:
    (found,) = problems(f"{valid}output: {{shard_size: {text}}}\n")
    assert "expected a size in bytes" in found


@pytest.mark.parametrize(
    "line", ["format: gguf", "dtype: bf16", "keep_geometry: yes", "shards: 3", "rank: 4", "others: drop"]
)
def test_other_outputs_are_refused(problems: Problems, valid: str, line: str) -> None:
    (found,) = problems(f"{valid}output: {{{line}}}\n")
    assert found.startswith(f"11: output.{line.split(':')[0]}: ")


def test_a_weight_of_an_unknown_delta_is_refused(problems: Problems, valid: str) -> None:
    (found,) = problems(valid.replace("{change: 2}", "{chnage: 2}"))
    assert "unknown delta 'chnage'; did you mean 'change'?" in found


def test_a_key_without_a_value_counts_as_absent_unless_null_means_something(read: Read, valid: str) -> None:
    recipe = read(
        valid.replace("keep: 1e-3", "keep: , strength: 3, mean: null").replace("retain.jsonl", "retain.jsonl, rows: ")
    )
    assert recipe.steps[0].options is not None
    assert recipe.steps[0].options.model_dump() == {
        "geometry": "kept", "keep": None, "strength": 3.0, "mean": None, "others": "source",
    }  # fmt: skip


def test_without_require_files_only_the_language_is_checked(read: Read, valid: str, folder: Path) -> None:
    text = valid.replace("retain.jsonl", "gone.jsonl").replace("into: original", "into: ./gone")
    recipe = read(text, require_files=False)
    assert recipe.into.path == folder / "gone"
    assert recipe.geometry["kept"].data is not None
    assert recipe.geometry["kept"].data.data == (folder / "gone.jsonl",)


def test_a_mapping_means_what_its_yaml_means(
    read: Read, valid: str, folder: Path, methods: Mapping[str, Method]
) -> None:
    recipe = from_mapping(
        {
            "into": folder / "original",
            "deltas": {"change": {"tuned": "tuned"}, "lora": {"adapter": "adapter"}},
            "geometry": {"kept": {"data": "retain.jsonl"}},
            "steps": [
                {"project": "soft", "geometry": "kept", "keep": 0.001, "delta": "change"},
                {"scale": 0.5, "layers": range(4)},
            ],
            "weights": {"change": 2},
        },
        methods,
        folder=folder,
    )
    assert recipe.text == read(valid).text
    assert recipe.source is None


def test_a_wrong_mapping_names_the_key(folder: Path, methods: Mapping[str, Method]) -> None:
    with pytest.raises(RecipeError) as caught:
        from_mapping({"into": object(), 3: 4, "deltas": {"x": {"tuned": "tuned"}}}, methods, folder=folder)
    text = str(caught.value)
    assert "recipe: into: a recipe holds maps, lists, text" in text
    assert "recipe: 3: a key must be text; got 3" in text
    with pytest.raises(RecipeError, match="a recipe is a map of keys; got a list"):
        from_mapping([], methods, folder=folder)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="unknown key 'extends'"):
        from_mapping(
            {"into": "original", "deltas": {"x": {"tuned": "tuned"}}, "extends": "a.yaml"}, methods, folder=folder
        )


def test_steps_alone_can_be_parsed_for_models_in_memory(methods: Mapping[str, Method]) -> None:
    steps = [{"project": "hard", "geometry": "g"}, {"scale": [0, 1]}]
    hard, scale = parse_steps(steps, methods, deltas=["a"], geometry=["g"])
    assert (hard.method, hard.selection.deltas, scale.number) == ("hard", ("a",), [0.0, 1.0])
    with pytest.raises(RecipeError, match=r"steps\[0\].geometry: unknown geometry 'g'; there is no geometry to name"):
        parse_steps(steps, methods, deltas=["a"])


def test_a_wrong_recipe_is_refused_without_importing_torch(folder: Path) -> None:
    path = folder / "wrong.yaml"
    path.write_text("into: original\nstps: []\n")
    code = (
        "import sys\n"
        "from vecsurgery.recipe import RecipeError, load\n"
        "try:\n"
        "    load(sys.argv[1], {})\n"
        "except RecipeError as error:\n"
        "    print(len(error.problems), sorted({'torch', 'transformers', 'mergekit'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert result.stdout == "2 []\n"


def test_a_missing_recipe_is_an_input_error(folder: Path, methods: Mapping[str, Method]) -> None:
    with pytest.raises(RecipeError, match=r"gone.yaml cannot be read: No such file"):
        load(folder / "gone.yaml", methods)
    with pytest.raises(RecipeError, match="cannot be read: Is a directory"):
        load(folder, methods)
