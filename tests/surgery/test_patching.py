"""Deltas as files: extract, apply and undo give back every byte, and refuse whatever they were not made for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import models
from support.results import describe, same_bits, tensors_of, write_adapter
from torch import Tensor

import vecsurgery
from vecsurgery.delta import DeltaFolder
from vecsurgery.errors import InputError, RunError, VecsurgeryError
from vecsurgery.surgery import patching

CASES = [
    ("llama", torch.bfloat16, "1GB"),
    ("gpt2", torch.float16, "1GB"),
    ("qwen2", torch.float32, "60kB"),
    ("mixtral", torch.bfloat16, "60kB"),
]
"""Untied; transposed matrices; tied with biases, sharded; fused experts, sharded."""
UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


@pytest.fixture(scope="module", params=CASES, ids=[case[0] for case in CASES])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, `tuned`, and `delta` made of them; zeros and negative zeros among the numbers."""
    architecture, dtype, shard_size = request.param
    root = tmp_path_factory.mktemp(architecture)
    models.checkpoint(root / "base", architecture, seed=1, dtype=dtype, shard_size=shard_size, num_hidden_layers=2)
    (root / "base" / "chat_template.jinja").write_text("{{ messages }}")
    models.perturbed(root / "base", root / "tuned", seed=2)
    for name, step in (("base", 5), ("tuned", 3)):
        for file in (root / name).glob("*.safetensors"):
            tensors = load_file(file)
            for tensor in tensors.values():
                tensor.view(-1)[::step] = -0.0
            save_file(tensors, file, metadata={"format": "pt"})
    vecsurgery.extract(root / "base", root / "tuned", root / "delta")
    return root


def test_apply_gives_the_tuned_bytes_and_undo_the_base_files(pair: Path, tmp_path: Path) -> None:
    found = vecsurgery.apply(pair / "base", pair / "delta", tmp_path / "applied")
    back = vecsurgery.undo(tmp_path / "applied", pair / "delta", tmp_path / "back")
    assert files_of(tmp_path / "applied") == files_of(pair / "tuned")
    assert files_of(tmp_path / "back") == files_of(pair / "base")
    assert found.patched > 0
    assert back.patched > 0
    assert {"surgery.json", "report.html"}.isdisjoint(files_of(tmp_path / "applied"))
    assert not (tmp_path / "back" / "README.md").exists()
    assert not list(tmp_path.glob("*.partial*"))


def test_the_record_and_the_description_state_the_size_of_the_patch(pair: Path) -> None:
    record = vecsurgery.surgery.api.read(pair / "delta")
    headers = load_file(pair / "delta" / "delta.safetensors")
    sizes = [values.nbytes for name, values in headers.items() if name.endswith((".at", ".bits"))]
    assert record["written"]["patch_bytes"] == sum(sizes) > 0
    assert DeltaFolder(pair / "delta").description.patch_bytes == sum(sizes)
    assert set(vecsurgery.verify(pair / "delta").values()) == {"same"}
    assert f"{patching.readable(sum(sizes))}" in vecsurgery.report.text(record)


def test_coarse_values_give_the_same_bytes_by_a_patch_of_every_entry(plain: Path, tmp_path: Path) -> None:
    for name in ("base", "tuned"):
        folder = Path(shutil.copytree(plain / name, tmp_path / name))
        tensors = {key: values.float() * 1.01 for key, values in load_file(folder / "model.safetensors").items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    vecsurgery.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta", dtype="bfloat16")
    name = "model.layers.0.mlp.up_proj.weight.apply"
    stored = load_file(tmp_path / "delta" / "delta.safetensors")
    assert stored[f"{name}.bits"].shape == (48 * 32,)
    assert f"{name}.at" not in stored
    vecsurgery.apply(tmp_path / "base", tmp_path / "delta", tmp_path / "applied")
    vecsurgery.undo(tmp_path / "applied", tmp_path / "delta", tmp_path / "back")
    assert files_of(tmp_path / "applied") == files_of(tmp_path / "tuned")
    assert files_of(tmp_path / "back") == files_of(tmp_path / "base")


def test_weights_in_torchs_format_come_back_tensor_for_tensor(plain: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(plain / "base", tmp_path / "base"))
    torch.save(load_file(base / "model.safetensors"), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    vecsurgery.extract(base, plain / "tuned", tmp_path / "delta")
    vecsurgery.apply(base, tmp_path / "delta", tmp_path / "applied")
    vecsurgery.undo(tmp_path / "applied", tmp_path / "delta", tmp_path / "back")
    assert tensors_equal(tensors_of(tmp_path / "applied"), tensors_of(plain / "tuned"))
    assert tensors_equal(tensors_of(tmp_path / "back"), tensors_of(plain / "base"))


def test_a_delta_that_is_applied_or_undone_already_is_refused_and_nothing_is_left(pair: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"seems to be applied already; `vecsurgery undo` takes it out again"):
        vecsurgery.apply(pair / "tuned", pair / "delta", tmp_path / "out")
    with pytest.raises(InputError, match=r"is not applied there, or was taken out already; expected what `apply` made"):
        vecsurgery.undo(pair / "base", pair / "delta", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_delta_applied_where_no_fingerprint_shows_it_is_found_by_the_tensors_hash(tmp_path: Path) -> None:
    models.checkpoint(tmp_path / "base", seed=1, num_hidden_layers=1, intermediate_size=512)
    shutil.copytree(tmp_path / "base", tmp_path / "tuned")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors[UP] = tensors[UP].clone()
    tensors[UP].view(-1)[tensors[UP].numel() // 2] += 1.0  # in the middle, where a fingerprint does not look
    save_file(tensors, tmp_path / "tuned" / "model.safetensors", metadata={"format": "pt"})
    vecsurgery.extract(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    with pytest.raises(InputError, match=rf"tensor '{UP}' has the bytes .* `vecsurgery undo` takes it out again"):
        vecsurgery.apply(tmp_path / "tuned", tmp_path / "delta", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_model_is_refused(pair: Path, tmp_path: Path) -> None:
    models.perturbed(pair / "base", tmp_path / "other", seed=8)
    with pytest.raises(InputError, match="was made from base"):
        vecsurgery.apply(tmp_path / "other", pair / "delta", tmp_path / "out")
    with pytest.raises(InputError, match="expected what `apply` made with it"):
        vecsurgery.undo(tmp_path / "other", pair / "delta", tmp_path / "out")


@pytest.mark.parametrize(
    ("model", "delta", "says"),
    [
        ("delta", "base", r"is a delta folder and .* a model folder; give them the other way round: vecsurgery apply "),
        ("delta", "delta", r"INTO \(the first argument\), .*delta, is a delta folder; expected the folder or hub id"),
        ("base", "tuned", r"DELTA \(the second argument\), .*tuned, is a model folder; expected a folder that"),
        ("./gone", "delta", r"INTO \(the first argument\), .*gone, is a folder that does not exist; expected"),
        ("base", "gone", r"DELTA \(the second argument\), .*gone, is a folder that does not exist; expected"),
        ("empty", "delta", r"INTO .*, is a folder with neither config.json nor delta.json; expected"),
        ("gone", "delta", r"INTO \(the first argument\): .*There is no folder of this name"),
        ("gone/a/b", "delta", r"INTO \(the first argument\), 'gone/a/b': .*; expected the folder or hub id"),
    ],
)
def test_the_argument_that_is_wrong_is_named(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, delta: str, says: str
) -> None:
    for name in ("base", "tuned", "delta"):
        (tmp_path / name).symlink_to(plain / name)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says):
        vecsurgery.apply(model, delta, "out")
    assert not list(tmp_path.glob("out*"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plain")
    models.checkpoint(root / "base", seed=1, dtype=torch.bfloat16, num_hidden_layers=1)
    models.perturbed(root / "base", root / "tuned", seed=2, only="mlp")
    vecsurgery.extract(root / "base", root / "tuned", root / "delta")
    return root


def spoilt(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain / "delta", tmp_path / "delta"))


def entry(folder: Path, parameter: str, **changes: Any) -> dict[str, Any]:
    """The entries of delta.json, one of them changed."""
    tensors: dict[str, Any] = json.loads((folder / "delta.json").read_text())["tensors"]
    return {**tensors, parameter: {**tensors[parameter], **changes}}


def test_one_changed_bit_in_the_edited_checkpoint_is_refused(plain: Path, tmp_path: Path) -> None:
    vecsurgery.apply(plain / "base", plain / "delta", tmp_path / "applied")
    file = tmp_path / "applied" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5000] ^= 1
    file.write_bytes(data)
    with pytest.raises(InputError, match="its bytes are not those that"):
        vecsurgery.undo(tmp_path / "applied", plain / "delta", tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_damaged_value_is_found_by_the_hash_of_the_result(plain: Path, tmp_path: Path) -> None:
    folder = spoilt(plain, tmp_path)
    tensors = load_file(folder / "delta.safetensors")
    name = "model.layers.0.mlp.up_proj.weight.values"
    tensors[name] = tensors[name] * 2
    save_file(tensors, folder / "delta.safetensors")
    files = json.loads((folder / "delta.json").read_text())["files"]
    describe(folder, files={name: {**facts, "size": (folder / name).stat().st_size} for name, facts in files.items()})
    with pytest.raises(InputError, match="the result has not the SHA-256"):
        vecsurgery.apply(plain / "base", folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda found: found | {"version": 2}, "version 2; expected"),
        (lambda found: found | {"surprise": 1}, "surprise"),
        (lambda found: found | {"files": {"../delta.safetensors": {"size": 1, "sha256": "0" * 64}}}, "bare names"),
        (lambda found: found | {"files": {"/etc/passwd": {"size": 1, "sha256": "0" * 64}}}, "bare names"),
        (lambda found: found | {"files": {}}, "not listed"),
        (lambda found: [found], "expected a JSON object"),
    ],
)
def test_a_wrong_description_is_refused(plain: Path, tmp_path: Path, change: object, says: str) -> None:
    folder = spoilt(plain, tmp_path)
    path = folder / "delta.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))  # type: ignore[operator]
    with pytest.raises(InputError, match=says):
        vecsurgery.apply(plain / "base", folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("parameter", "changes", "says"),
    [
        (UP, {"dtype": "nonsense"}, rf"tensors\.{UP}\.dtype: Input should be 'float64'"),
        (UP, {"shape": [-48, 32]}, "greater than or equal to 0"),
        (UP, {"after": "f" * 63}, "match pattern"),
        (NORM, {"after": "f" * 64}, f"{NORM}' is said to be unchanged"),
    ],
)
def test_a_wrong_entry_is_refused_by_name(
    plain: Path, tmp_path: Path, parameter: str, changes: dict[str, Any], says: str
) -> None:
    folder = spoilt(plain, tmp_path)
    describe(folder, tensors=entry(folder, parameter, **changes))
    with pytest.raises(InputError, match=says):
        vecsurgery.apply(plain / "base", folder, tmp_path / "out")


def test_a_description_that_was_altered_is_refused_by_its_own_hash(plain: Path, tmp_path: Path) -> None:
    folder = spoilt(plain, tmp_path)
    path = folder / "delta.json"
    path.write_text(path.read_text().replace('"sources"', ' "sources"', 1))
    vecsurgery.apply(plain / "base", folder, tmp_path / "spaced")
    path.write_text(path.read_text().replace('"rounding": 0', '"rounding": 1', 1))
    with pytest.raises(InputError, match=r"delta\.json: it has not the SHA-256 that it states of itself"):
        vecsurgery.apply(plain / "base", folder, tmp_path / "out")


def test_a_cut_off_file_is_refused_by_its_size(plain: Path, tmp_path: Path) -> None:
    folder = spoilt(plain, tmp_path)
    file = folder / "delta.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(InputError, match="should have"):
        vecsurgery.apply(plain / "base", folder, tmp_path / "out")


def test_nothing_of_the_users_is_overwritten(plain: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    for call in (
        lambda: vecsurgery.apply(plain / "base", plain / "delta", taken),
        lambda: vecsurgery.undo(plain / "base", plain / "delta", plain / "base"),
        lambda: vecsurgery.apply(plain / "base", plain / "delta", plain / "delta"),
        lambda: vecsurgery.extract(plain / "base", plain / "tuned", taken),
    ):
        with pytest.raises(InputError):
            call()
    assert (taken / "mine.txt").read_text() == "mine"
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]


def test_nothing_is_written_into_an_input(plain: Path, tmp_path: Path) -> None:
    base, tuned, delta = (plain / name for name in ("base", "tuned", "delta"))
    edited = vecsurgery.edit(into=base, deltas={"one": tuned, "two": {"file": delta}}, steps=[])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"into: {base}\ndeltas: {{x: {{file: {delta}}}}}\ngates: []\n")
    for folder in (base, tuned, delta):
        with pytest.raises(InputError, match="lies within the input"):
            vecsurgery.write(edited, folder / "sub")
    for folder in (base, delta):
        with pytest.raises(InputError, match="lies within the input"):
            vecsurgery.apply(base, delta, folder / "sub")
        with pytest.raises(InputError, match="lies within the input"):
            vecsurgery.run(recipe, folder / "deep" / "sub")
        assert not [path for path in folder.iterdir() if path.is_dir()]


def test_only_changed_tensors_and_rows_are_stored(plain: Path, tmp_path: Path) -> None:
    tuned = Path(shutil.copytree(plain / "base", tmp_path / "tuned"))
    tensors = load_file(tuned / "model.safetensors")
    tensors["model.embed_tokens.weight"][[3, 7]] += 1.0
    save_file(tensors, tuned / "model.safetensors", metadata={"format": "pt"})
    record = vecsurgery.extract(plain / "base", tuned, tmp_path / "delta")
    stored = load_file(tmp_path / "delta" / "delta.safetensors")
    assert record["written"]["kinds"] == {"rows": 1}
    assert stored["model.embed_tokens.weight.rows"].tolist() == [3, 7]
    assert stored["model.embed_tokens.weight.values"].shape == (2, 32)
    vecsurgery.apply(plain / "base", tmp_path / "delta", tmp_path / "applied")
    assert files_of(tmp_path / "applied") == files_of(tuned)


def test_a_longer_vocabulary_of_the_tuned_model_is_left_out_and_undone_all_the_same(
    plain: Path, tmp_path: Path
) -> None:
    tuned = models.checkpoint(
        tmp_path / "tuned", seed=4, dtype=torch.bfloat16, num_hidden_layers=1, vocab_size=models.VOCABULARY + 4
    )
    models.write_tokenizer(tuned, size=models.VOCABULARY + 4)
    vecsurgery.extract(plain / "base", tuned, tmp_path / "delta")
    vecsurgery.apply(plain / "base", tmp_path / "delta", tmp_path / "applied")
    vecsurgery.undo(tmp_path / "applied", tmp_path / "delta", tmp_path / "back")
    made, theirs = tensors_of(tmp_path / "applied"), tensors_of(tuned)
    assert same_bits(made["lm_head.weight"], theirs["lm_head.weight"][: models.VOCABULARY])
    assert files_of(tmp_path / "back") == files_of(plain / "base")


def test_an_adapter_is_kept_as_factors_and_applied_to_the_bits_of_a_run(plain: Path, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.q_proj": 32})
    content = f"into: {plain / 'base'}\ndeltas: {{skill: {{adapter: {tmp_path / 'adapter'}}}}}\ngates: []\n"
    (tmp_path / "recipe.yaml").write_text(content)
    vecsurgery.run(tmp_path / "recipe.yaml", tmp_path / "whole")
    record = vecsurgery.run(tmp_path / "recipe.yaml", tmp_path / "delta", overrides=["output.format=delta"])
    assert record["written"]["kinds"] == {"factored": 1}
    vecsurgery.apply(plain / "base", tmp_path / "delta", tmp_path / "applied")
    vecsurgery.undo(tmp_path / "applied", tmp_path / "delta", tmp_path / "back")
    assert tensors_equal(tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "applied"))
    assert files_of(tmp_path / "back") == files_of(plain / "base")


def tensors_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(same_bits(first[name], second[name]) for name in first)


def test_an_interrupted_apply_goes_on_behind_its_last_file(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = models.shuffle_shards(Path(shutil.copytree(plain / "base", tmp_path / "base")), seed=0)
    original, made = patching.write_shard, list[str]()

    def counted(folder: Path, shard: patching.ShardPlan, tensors: object) -> object:
        if len(made) == 2:
            raise RunError("the disk is full")
        made.append(shard.file)
        return original(folder, shard, tensors)  # type: ignore[arg-type]

    with monkeypatch.context() as full:
        full.setattr(patching, "write_shard", counted)
        with pytest.raises(RunError):
            vecsurgery.apply(base, plain / "delta", tmp_path / "out")
    times = {name: (tmp_path / "out.partial" / name).stat().st_mtime_ns for name in made}
    vecsurgery.apply(base, plain / "delta", tmp_path / "out")
    assert times == {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in made}
    assert tensors_equal(tensors_of(tmp_path / "out"), tensors_of(plain / "tuned"))
    assert files_of(tmp_path / "out").keys() == files_of(base).keys()


def test_errors_are_ours(plain: Path, tmp_path: Path) -> None:
    for model in ("./gone", f"{plain / 'base'}+{plain / 'tuned'}", "///"):
        with pytest.raises(VecsurgeryError):
            vecsurgery.apply(model, plain / "delta", tmp_path / "out")
