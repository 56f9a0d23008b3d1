"""Two checkpoints compared: figures are those of whole tensors, whatever is read at a time; records stand beside."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from support import models
from support.results import QUERY, edit_json, tensors_of
from support.workspace import Workspace
from torch import Tensor

import vecsurgery
from vecsurgery.checkpoint import Stored
from vecsurgery.cli import main
from vecsurgery.errors import InputError
from vecsurgery.report import comparison_picture
from vecsurgery.studies import comparing

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two bfloat16 Llamas that differ in their attention and MLP matrices only, differently sharded."""
    root = tmp_path_factory.mktemp("pair")
    first = models.checkpoint(root / "first", seed=1, dtype=torch.bfloat16)
    second = models.perturbed(first, root / "second", seed=2, only="proj")
    models.shuffle_shards(second, seed=0)
    return first, second


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with into, tuned and two outputs of recipes that differ in `keep`."""
    root = tmp_path_factory.mktemp("runs")
    into = models.checkpoint(root / "into", seed=1)
    models.perturbed(into, root / "tuned", seed=2, only="proj")
    models.write_texts(root / "retain.jsonl")
    recipe = (
        "into: into\ndeltas:\n  change: {tuned: tuned}\ngeometry:\n  retain: {data: retain.jsonl}\n"
        "steps:\n  - {project: retain_energy, geometry: retain, keep: 0.1}\ngates: []\n"
    )
    (root / "recipe.yaml").write_text(recipe)
    vecsurgery.run(root / "recipe.yaml", root / "hard")
    vecsurgery.run(root / "recipe.yaml", root / "soft", overrides=["retain_energy.keep=0.5"])
    return root


def _changed(folder: Path, target: Path, **changes: Tensor | None) -> Path:
    """A copy with these tensors in place of its own, or without them; names with `__` for dots."""
    models.perturbed(folder, target, seed=0, only="nothing is called so")
    tensors = tensors_of(folder)
    for key, tensor in changes.items():
        name = key.replace("__", ".")
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_a_checkpoint_is_the_same_as_itself_however_it_is_sharded(pair: tuple[Path, Path], tmp_path: Path) -> None:
    copy = models.perturbed(pair[0], tmp_path / "copy", seed=0, only="nothing is called so")
    models.shuffle_shards(copy, seed=3)
    found = vecsurgery.compare(pair[0], copy)
    assert found.same
    assert found.total().relative == 0.0
    assert "The weights are the same byte for byte" in found.text()


def test_figures_are_those_of_whole_tensors(pair: tuple[Path, Path]) -> None:
    found = vecsurgery.compare(*pair)
    first, second = (tensors_of(folder) for folder in pair)
    assert {each.tensor for each in found.tensors} == set(first)
    for each in found.tensors:
        a, b = first[each.tensor], second[each.tensor]
        assert each.same == torch.equal(a, b) == ("proj" not in each.tensor)
        assert each.changed == int((a != b).sum())
        assert each.squared_difference == pytest.approx(float((a.double() - b.double()).norm()) ** 2)
        assert each.squared_norm == pytest.approx(float(b.double().norm()) ** 2)
    whole = [torch.cat([tensors[name].flatten() for name in first]) for tensors in (first, second)]
    assert found.total().relative == pytest.approx(_distance(*whole))
    assert found.total().changed == pytest.approx(float((whole[0] != whole[1]).double().mean()))


def test_roles_and_layers_add_up_what_is_theirs(pair: tuple[Path, Path]) -> None:
    found = vecsurgery.compare(*pair)
    first, second = (tensors_of(folder) for folder in pair)
    names = {"q": "q_proj", "down": "down_proj", "1": "layers.1."}
    expected = {}
    for key, part in names.items():
        a, b = (torch.cat([tensors[n].flatten() for n in first if part in n]) for tensors in (first, second))
        expected[key] = _distance(a, b)
    assert found.by_role()["q"].relative == pytest.approx(expected["q"])
    assert found.by_role()["down"].relative == pytest.approx(expected["down"])
    assert found.by_layer()[1].relative == pytest.approx(expected["1"])
    assert found.by_role()["vectors"].relative == found.by_role()["embedding"].relative == 0.0
    assert list(found.by_layer()) == [0, 1, 2]


def test_what_is_read_at_a_time_does_not_matter(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = vecsurgery.compare(*pair).to_dict()
    monkeypatch.setattr(comparing, "_CHUNK", 100)
    pieces = vecsurgery.compare(*pair).to_dict()
    assert pieces["weights"]["total"] == pytest.approx(whole["weights"]["total"])
    for name, each in whole["weights"]["tensors"].items():
        assert pieces["weights"]["tensors"][name]["relative"] == pytest.approx(each["relative"])


def test_every_tensor_is_read_once_and_the_embedding_by_rows(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: dict[str, list[slice | Tensor | None]] = {}
    original = Stored.read

    def read(self: Stored, tensor: str, rows: slice | Tensor | None = None) -> Tensor:
        if self.folder == pair[0]:
            reads.setdefault(tensor, []).append(rows)
        return original(self, tensor, rows)

    weights = vecsurgery.weights_of(pair[0])
    weights.layout  # noqa: B018 - settles tying, which compares tensors
    monkeypatch.setattr(Stored, "read", read)
    monkeypatch.setattr(comparing, "_CHUNK", 10 * 32)
    vecsurgery.compare(weights, pair[1])  # type: ignore[arg-type]
    rows = [part for part in reads.pop(EMBEDDING) if isinstance(part, slice)]
    assert [(part.start, part.stop) for part in rows] == [(at, at + 10) for at in range(0, 160, 10)]
    reads.pop("lm_head.weight")
    assert all(parts == [None] for parts in reads.values())


def test_cosines_are_of_the_changes_from_the_model_that_the_record_names(runs: Path) -> None:
    found = vecsurgery.compare(runs / "hard", runs / "tuned")
    into, hard, tuned = (tensors_of(runs / name) for name in ("into", "hard", "tuned"))
    a, b = ((each[QUERY].double() - into[QUERY].double()).flatten() for each in (hard, tuned))
    (query,) = [each for each in found.to_dict()["weights"]["tensors"].items() if each[0] == QUERY]
    assert query[1]["cosine"] == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-9)
    assert found.into == "into"
    named = vecsurgery.compare(runs / "hard", runs / "tuned", into=runs / "into")
    assert named.total().cosine == found.total().cosine
    changes = [torch.cat([(each[n].double() - into[n].double()).flatten() for n in into]) for each in (hard, tuned)]
    expected = float(changes[0] @ changes[1] / (changes[0].norm() * changes[1].norm()))
    assert found.total().cosine == pytest.approx(expected, abs=1e-9)


def test_against_its_own_input_an_output_has_no_cosine(runs: Path) -> None:
    found = vecsurgery.compare(runs / "hard", runs / "into")
    assert found.total().cosine is None
    assert "cosine" not in found.text()


def test_two_outputs_show_figures_verdicts_and_the_keys_that_differ(runs: Path) -> None:
    found = vecsurgery.compare(runs / "hard", runs / "soft")
    assert found.recipe_changes() == [
        "- steps[retain_energy].keep: 0.1",
        "+ steps[retain_energy].keep: 0.5",
    ]
    first, second = found.measures()["bias left on retain"]
    assert first == pytest.approx(0.1, rel=1e-3)
    assert second == pytest.approx(0.5, rel=1e-3)
    text = found.text()
    assert "A: Removed 90 % of the `retain` activation energy" in text
    assert "B: Removed 50 % of the `retain` activation energy" in text
    assert "+ steps[retain_energy].keep: 0.5" in text


def test_equal_outputs_have_equal_recipes(runs: Path) -> None:
    assert "The recipes are the same." in vecsurgery.compare(runs / "hard", runs / "hard").text()


def test_without_records_weights_are_compared_all_the_same(runs: Path, pair: tuple[Path, Path]) -> None:
    assert "Neither A nor B has a record" in vecsurgery.compare(*pair).text()
    one = vecsurgery.compare(runs / "tuned", runs / "hard")
    assert "A has no record" in one.text()
    assert one.to_dict()["recipe"] is None
    assert one.measures()["bias left on retain"][0] is None


def test_a_record_that_cannot_be_read_is_a_warning(runs: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(runs / "hard", tmp_path / "broken")
    edit_json(broken / "surgery.json", version=99)
    found = vecsurgery.compare(broken, runs / "hard")
    assert found.same
    assert found.records[0] is None
    assert any("version 99" in line for line in found.warnings)


def test_an_origin_that_is_not_here_or_another_one_is_a_warning(runs: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(runs / "hard", tmp_path / "moved")
    recipe = json.loads((moved / "surgery.json").read_text())["recipe"]
    edit_json(moved / "surgery.json", recipe=recipe.replace(str(runs / "into"), str(runs / "gone")))
    found = vecsurgery.compare(moved, runs / "tuned")
    assert found.total().cosine is None
    assert any("gone" in line for line in found.warnings)
    edit_json(moved / "surgery.json", recipe=recipe.replace(str(runs / "into"), str(runs / "tuned")))
    assert any("fingerprint" in line for line in vecsurgery.compare(moved, runs / "into").warnings)


def test_rows_of_the_vocabulary_that_both_have_are_compared(pair: tuple[Path, Path], tmp_path: Path) -> None:
    own = tensors_of(pair[0])
    longer = {key: torch.cat([own[key], own[key][:8]]) for key in (EMBEDDING, "lm_head.weight")}
    target = _changed(pair[0], tmp_path / "longer", **{key.replace(".", "__"): each for key, each in longer.items()})
    edit_json(target / "config.json", vocab_size=168)
    found = vecsurgery.compare(target, pair[0])
    (embedding,) = [each for each in found.tensors if each.tensor == EMBEDDING]
    assert embedding.shape == (160, 32)
    assert embedding.squared_difference == 0.0
    assert not embedding.same
    assert any("168 rows in A and 160 in B" in line for line in found.warnings)


def test_models_of_another_size_are_refused_with_the_tensors_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    other = models.checkpoint(tmp_path / "other", seed=1, intermediate_size=56)
    with pytest.raises(InputError, match=r"gate_proj\.weight: \(48, 32\) and \(56, 32\).*one layout"):
        vecsurgery.compare(pair[0], other)
    with pytest.raises(InputError, match="share no tensor of a block"):
        vecsurgery.compare(pair[0], models.checkpoint(tmp_path / "gpt2", "gpt2", seed=1))


def test_tensors_of_one_only_are_named(pair: tuple[Path, Path], tmp_path: Path) -> None:
    short = models.checkpoint(tmp_path / "short", seed=1, dtype=torch.bfloat16, num_hidden_layers=2)
    found = vecsurgery.compare(pair[0], short)
    assert found.only_a
    assert all(".layers.2." in name for name in found.only_a)
    assert not found.only_b
    assert not found.same
    assert f"Only A has {len(found.only_a)} tensors: {found.only_a[0]}" in found.text()
    assert vecsurgery.compare(short, pair[0]).only_b == found.only_a


def test_a_tied_head_is_compared_with_one_that_is_stored(tmp_path: Path) -> None:
    tied = models.checkpoint(tmp_path / "tied", seed=1, tie_word_embeddings=True)
    head = tensors_of(tied)[EMBEDDING] + 1.0
    untied = _changed(tied, tmp_path / "untied", lm_head__weight=head)
    edit_json(untied / "config.json", tie_word_embeddings=False)
    found = vecsurgery.compare(tied, untied)
    assert not found.only_a
    assert not found.only_b
    (different,) = [each for each in found.tensors if not each.same]
    assert different.squared_difference == pytest.approx(head.numel())


def test_another_type_with_equal_values_differs_in_bytes_only(pair: tuple[Path, Path], tmp_path: Path) -> None:
    wide = _changed(pair[0], tmp_path / "wide", **{QUERY.replace(".", "__"): tensors_of(pair[0])[QUERY].float()})
    found = vecsurgery.compare(wide, pair[0])
    (query,) = [each for each in found.tensors if not each.same]
    assert (query.changed, query.squared_difference) == (0, 0.0)
    assert "1 tensor: float32 in A, bfloat16 in B." in found.text()


def test_numbers_that_are_none_are_a_warning_and_leave_their_figures_out(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    spoilt = tensors_of(pair[0])[QUERY].clone()
    spoilt[0, 0] = torch.nan
    found = vecsurgery.compare(_changed(pair[0], tmp_path / "nan", **{QUERY.replace(".", "__"): spoilt}), pair[0])
    assert found.total().relative is None
    assert any(QUERY in line and "NaN" in line for line in found.warnings)
    json.dumps(found.to_dict(), allow_nan=False)
    assert "–" in found.text()


@pytest.mark.parametrize(("architecture", "role"), [("gpt2", "q+k+v"), ("phi3", "gate+up")])
def test_fused_and_transposed_matrices_have_their_roles(architecture: str, role: str, tmp_path: Path) -> None:
    first = models.checkpoint(tmp_path / "first", architecture, seed=1)
    found = vecsurgery.compare(models.perturbed(first, tmp_path / "second", seed=2), first)
    assert found.by_role()[role].relative == pytest.approx(
        _distance(
            *(
                torch.cat([tensors_of(tmp_path / name)[each.tensor].flatten() for each in _of(found, role)])
                for name in ("second", "first")
            )
        )
    )


def _of(found: Any, role: str) -> list[Any]:
    return [each for each in found.tensors if each.role == role]


def test_models_in_memory_are_compared(pair: tuple[Path, Path]) -> None:
    edited = vecsurgery.edit(into=str(pair[0]), deltas={"x": (str(pair[1]), str(pair[0]))}, dtype="float32")
    found = vecsurgery.compare(edited, pair[1])
    assert found.total().relative == pytest.approx(0.0, abs=1e-6)


def test_the_command_prints_the_text_or_json_and_draws(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    shown = CliRunner().invoke(main, ["compare", "hard", "soft", "--worst", "2", "--picture", "where.svg"])
    assert shown.exit_code == 0, shown.output
    assert "A: hard\nB: soft\n" in shown.stdout
    assert "comparing" in shown.stderr
    drawn = (runs / "where.svg").read_text()
    assert "cosine of A" in drawn
    assert "down" in drawn
    content = json.loads(CliRunner().invoke(main, ["compare", "hard", "soft", "--json"]).stdout)
    assert content["weights"]["total"]["relative"] == vecsurgery.compare("hard", "soft").total().relative
    assert content["recipe"] == ["- steps[retain_energy].keep: 0.1", "+ steps[retain_energy].keep: 0.5"]
    assert content["measures"]["bias left on retain"]["a"] == pytest.approx(0.1, rel=1e-3)


def test_the_same_comparison_draws_the_same_bytes(pair: tuple[Path, Path], tmp_path: Path) -> None:
    found = vecsurgery.compare(*pair)
    for name in ("a.svg", "b.svg"):
        comparison_picture(found, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    comparison_picture(vecsurgery.compare(pair[0], pair[0]), tmp_path / "same.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent-model-folder/x/y", "into"], "absent-model-folder"),
        (["into", "tuned", "--picture", "where.pdf"], "drawing into where.pdf"),
    ],
)
def test_what_cannot_be_compared_exits_2(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(workspace.root)
    result = CliRunner().invoke(main, ["compare", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
