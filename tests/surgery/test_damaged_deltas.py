"""Delta folders that are not what was written: a recipe refuses them as apply and undo do, and says why."""

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
from support.results import describe, tensors_of
from torch import Tensor

import vecsurgery
from vecsurgery.checkpoint import Stored, file_sha256
from vecsurgery.cli import main
from vecsurgery.delta import Applied, DeltaFolder, bits
from vecsurgery.errors import InputError

UP, GATE = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"
QUERY, NORM, EMBEDDING = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight", "model.embed_tokens.weight"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, `tuned`, and `delta` made of them; few rows of the embedding change."""
    root = tmp_path_factory.mktemp("made")
    models.checkpoint(root / "base", seed=1, dtype=torch.bfloat16, num_hidden_layers=1)
    models.perturbed(root / "base", root / "tuned", seed=2)
    tensors, base = tensors_of(root / "tuned"), tensors_of(root / "base")
    tensors[EMBEDDING] = base[EMBEDDING].clone()
    tensors[EMBEDDING][[3, 7, 90]] *= 1.013
    save_file(tensors, root / "tuned" / "model.safetensors", metadata={"format": "pt"})
    vecsurgery.extract(root / "base", root / "tuned", root / "delta")
    return root


@pytest.fixture
def spoilt(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "delta", tmp_path / "delta"))


def run(base: Path, delta: Path, out: Path) -> Any:
    recipe = out.with_suffix(".yaml")
    recipe.write_text(f"into: {base}\ndeltas: {{x: {{file: {delta}}}}}\nsteps: [{{scale: 0.5}}]\ngates: []\n")
    return vecsurgery.run(recipe, out)


def refused_by_all(made: Path, delta: Path, out: Path, says: str) -> None:
    for call in (
        lambda: vecsurgery.apply(made / "base", delta, out),
        lambda: vecsurgery.undo(made / "tuned", delta, out),
        lambda: run(made / "base", delta, out),
    ):
        with pytest.raises(InputError, match=says) as caught:
            call()
        assert str(delta) in str(caught.value)
    assert not out.exists()


def test_one_changed_bit_of_a_value_is_refused_wherever_it_would_be_used(made: Path, spoilt: Path) -> None:
    file = spoilt / "delta.safetensors"
    data = bytearray(file.read_bytes())
    data[-10_000] ^= 0x40  # far from the edges that the fingerprint takes
    file.write_bytes(data)
    out = spoilt.with_name("out")
    with pytest.raises(InputError, match=r"delta\.safetensors has not the SHA-256"):
        run(made / "base", spoilt, out)
    assert not list(spoilt.parent.glob("out*/"))
    with pytest.raises(InputError, match=r"delta\.safetensors has not the SHA-256"):
        vecsurgery.check(out.with_suffix(".yaml"), weights=True)
    edited = vecsurgery.edit(into=made / "base", deltas={"x": {"file": spoilt}}, steps=[])
    with pytest.raises(InputError, match=r"delta\.safetensors has not the SHA-256"):
        edited.read(UP)


def test_the_files_are_hashed_once_and_stand_in_the_record(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vecsurgery.delta import folder

    seen = []
    monkeypatch.setattr(folder, "file_sha256", lambda path: (seen.append(path.name), file_sha256(path))[1])
    record = run(made / "base", made / "delta", tmp_path / "out")
    assert seen.count("delta.safetensors") == 1
    for name in ("delta.json", "delta.safetensors"):
        assert record["inputs"][f"deltas.x: {name}"] == file_sha256(made / "delta" / name)


def test_a_base_that_is_damaged_within_is_refused_by_a_recipe_too(made: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(made / "base", tmp_path / "base"))
    tensors = tensors_of(base)
    tensors[EMBEDDING].view(-1)[2500] += 1.0  # the fingerprint takes the edges alone
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"{EMBEDDING}' of .*base: its bytes are not those"):
        run(base, made / "delta", tmp_path / "out")


def _swap(found: dict[str, Any]) -> None:
    found[UP]["name"] = GATE


def _turn(found: dict[str, Any]) -> None:
    found[QUERY]["transposed"] = True


def _rename(found: dict[str, Any]) -> None:
    found["model.other.weight"] = found.pop(NORM)


def _unchange(found: dict[str, Any]) -> None:
    found[UP] = {key: found[UP][key] for key in ("name", "shape", "dtype", "before")} | {"after": found[UP]["before"]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_swap, UP),
        (_turn, QUERY),
        (_rename, r"model\.other\.weight"),
        (_unchange, UP),
        (lambda found: found.pop(UP), UP),
    ],
    ids=["swap", "turn", "rename", "unchange", "remove"],
)
def test_entries_that_are_not_those_of_the_files_and_the_base_are_refused(
    made: Path, spoilt: Path, change: Change, says: str
) -> None:
    tensors = json.loads((spoilt / "delta.json").read_text())["tensors"]
    change(tensors)
    describe(spoilt, tensors=tensors)
    refused_by_all(made, spoilt, spoilt.with_name("out"), says)


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float8_e4m3fn, torch.complex64], ids=str)
def test_values_that_are_no_floating_numbers_are_refused(made: Path, spoilt: Path, dtype: torch.dtype) -> None:
    file = spoilt / "delta.safetensors"
    tensors = load_file(file)
    tensors[f"{UP}.values"] = tensors[f"{UP}.values"].to(dtype)
    save_file(tensors, file)
    describe(spoilt, files={file.name: {"size": file.stat().st_size, "sha256": file_sha256(file)}})
    refused_by_all(made, spoilt, spoilt.with_name("out"), rf"{UP}\.values' is {str(dtype).removeprefix('torch.')}")


@pytest.mark.parametrize("dtype", ["stored", "float16"])
def test_rows_that_are_asked_for_are_computed_alone(
    made: Path, tmp_path: Path, dtype: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    vecsurgery.extract(made / "tuned", made / "base", tmp_path / "delta", dtype=dtype)
    weights = Applied(Stored(made / "tuned"), DeltaFolder(tmp_path / "delta"))
    seen, plainly = [], bits._rounded

    def noted(weight: Tensor, delta: Tensor, sign: float) -> Tensor:
        seen.append(len(weight))
        return plainly(weight, delta, sign)

    monkeypatch.setattr(bits, "_rounded", noted)
    rows = torch.tensor([90, 3, 3, 5, 7])
    for name in (EMBEDDING, "lm_head.weight"):
        expected = tensors_of(made / "base")[name]
        assert torch.equal(weights.read(name, rows), expected[rows])
        assert torch.equal(weights.read(name, torch.zeros(len(expected), dtype=torch.bool)), expected[:0])
    assert max(seen) == len(rows)


def test_places_of_a_patch_are_examined_once_however_many_pieces_are_read(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, plainly = [], DeltaFolder._require_ascending

    def noted(self: DeltaFolder, name: str, places: Tensor, count: int) -> None:
        seen.append(name)
        plainly(self, name, places, count)

    monkeypatch.setattr(DeltaFolder, "_require_ascending", noted)
    weights = Applied(Stored(made / "base"), DeltaFolder(made / "delta"))
    pieces = [weights.read("lm_head.weight", slice(row, row + 16)) for row in range(0, models.VOCABULARY, 16)]
    assert torch.equal(torch.cat(pieces), tensors_of(made / "tuned")["lm_head.weight"])
    assert seen == ["lm_head.weight.apply.at"]


def test_extract_says_what_its_delta_does_not_give_back(made: Path, tmp_path: Path) -> None:
    tuned = Path(shutil.copytree(made / "tuned", tmp_path / "tuned"))
    tensors = {name: values.float() * 1.001 for name, values in tensors_of(tuned).items()}
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    told = CliRunner().invoke(main, ["extract", str(made / "base"), str(tuned), str(tmp_path / "delta")])
    assert told.exit_code == 0, told.output
    assert f"{len(tensors)} tensors of tuned have types that those of `into` do not hold" in told.output
    assert "`undo` those of the base" in told.output
