"""A folder is read as transformers reads it, whatever its shards; what cannot be used is refused by name."""

import json
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import architectures
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from vecsurgery.checkpoint import InMemory, Stored
from vecsurgery.errors import InputError, UnsupportedError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    architectures.build("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _sharded(folder: Path) -> Path:
    """The same tensors, every second one in another shard, in no order."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors, key=lambda name: name[::-1])
    weight_map = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == shard}, folder / shard)
    _write_index(folder, weight_map)
    return folder


def _write_index(folder: Path, weight_map: dict[str, str], name: str = "model.safetensors") -> None:
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _binary(folder: Path) -> Path:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def _edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def _add(folder: Path, **tensors: torch.Tensor) -> None:
    save_file({**load_file(folder / "model.safetensors"), **tensors}, folder / "model.safetensors")


@pytest.mark.parametrize("store", [lambda folder: folder, _sharded, _binary], ids=["single", "sharded", "bin"])
def test_every_form_of_storage_gives_the_same_tensors_layout_and_fingerprint(
    folder: Path, store: Callable[[Path], Path]
) -> None:
    expected = load_file(folder / "model.safetensors")
    layout, fingerprint = Stored(folder).layout, Stored(folder).fingerprint
    stored = Stored(store(folder))
    assert set(stored.headers) == set(expected)
    for name, tensor in expected.items():
        header = stored.headers[name]
        assert torch.equal(stored.read(name), tensor)
        assert (header.dtype, header.shape, header.nbytes) == ("float32", tuple(tensor.shape), tensor.nbytes)
        assert header.file.parent == folder
    assert stored.layout == layout
    assert stored.fingerprint == fingerprint


@pytest.mark.parametrize("store", [lambda folder: folder, _binary], ids=["single", "bin"])
@pytest.mark.parametrize("rows", [slice(3, 9), slice(5, None), torch.tensor([7, 0, 7])], ids=str)
def test_rows_are_those_of_the_whole_tensor(folder: Path, store: Callable[[Path], Path], rows: Any) -> None:
    stored = Stored(store(folder))
    name = "model.embed_tokens.weight"
    assert torch.equal(stored.read(name, rows), stored.read(name)[rows])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_tensors_come_in_their_stored_type(folder: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    stored = Stored(folder)
    assert all(torch.equal(stored.read(name), tensor) for name, tensor in tensors.items())
    assert {header.dtype for header in stored.headers.values()} == {str(dtype).removeprefix("torch.")}


def test_threads_read_the_same_as_one(folder: Path) -> None:
    stored = Stored(_sharded(folder))
    names = list(stored.headers) * 4
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(stored.read, names))
    assert all(torch.equal(tensor, stored.read(name)) for name, tensor in zip(names, read, strict=True))


def test_a_file_that_was_replaced_behind_the_header_is_refused(folder: Path) -> None:
    stored = Stored(folder)
    save_file(load_file(folder / "model.safetensors") | {"a": torch.ones(3)}, folder / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: it is not the file .* start again"):
        stored.read("model.norm.weight")


def test_a_name_that_is_not_there_is_a_key_error(folder: Path) -> None:
    with pytest.raises(KeyError, match="nothing"):
        Stored(folder).read("nothing")


def test_fingerprint_changes_with_a_weight_and_not_with_the_name_of_the_folder(folder: Path) -> None:
    fingerprint = Stored(folder).fingerprint
    folder = folder.rename(folder.with_name("renamed"))
    assert Stored(folder).fingerprint == fingerprint
    _edit_config(folder, use_cache=False, transformers_version="4.0")
    assert Stored(folder).fingerprint == fingerprint
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][-1] += 1.0
    save_file(tensors, folder / "model.safetensors")
    assert Stored(folder).fingerprint != fingerprint


def test_fingerprint_changes_with_the_architecture(folder: Path) -> None:
    fingerprint = Stored(folder).fingerprint
    _edit_config(folder, rms_norm_eps=0.5)
    assert Stored(folder).fingerprint != fingerprint


@pytest.mark.parametrize("equal", [True, False])
def test_a_tie_holds_where_the_stored_pair_is_equal_and_breaks_where_it_is_not(tmp_path: Path, equal: bool) -> None:
    architectures.build("qwen2").save_pretrained(tmp_path)
    head = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"].clone()
    if not equal:
        head[3, 2] += 1.0
    _add(tmp_path, **{"lm_head.weight": head})
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == equal
    assert bool(Stored(tmp_path).layout.tied) == equal


def test_a_lone_head_provides_the_embedding_that_is_tied_to_it(tmp_path: Path) -> None:
    architectures.build("qwen2").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    save_file(tensors, tmp_path / "model.safetensors")
    assert Stored(tmp_path).layout.tied == {"model.embed_tokens.weight": "lm_head.weight"}


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _cut_header(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:40])


def _garble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 12) + b"not json at all, this")


def _both(folder: Path) -> None:
    _write_index(folder, {"model.norm.weight": "other.safetensors"})


def _missing_shard(folder: Path) -> None:
    _sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def _missing_tensor(folder: Path) -> None:
    _sharded(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    _write_index(folder, {**index["weight_map"], "ghost.weight": "model-00001-of-00002.safetensors"})


def _escape(path: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        _write_index(folder, {"model.norm.weight": path.replace("HERE", str(folder.parent))})

    return damage


def _broken_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("{")


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _adapter(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")


def _bad_config(folder: Path) -> None:
    (folder / "config.json").write_text("{]")


def _broken_binary(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"no checkpoint")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, r"model\.safetensors.*truncated"),
        (_cut_header, r"model\.safetensors.*cut off"),
        (_garble, r"model\.safetensors.*header"),
        (_both, "both"),
        (_missing_shard, r"model-00002-of-00002\.safetensors.*missing"),
        (_missing_tensor, "'ghost.weight'.*does not hold it"),
        (_escape("../outside.safetensors"), "bare name"),
        (_escape("HERE/outside.safetensors"), "bare name"),
        (_broken_index, r"model\.safetensors\.index\.json"),
        (_no_weights, "no weights"),
        (_adapter, "adapter"),
        (_bad_config, r"config\.json: not valid JSON"),
        (_broken_binary, r"pytorch_model\.bin"),
    ],
)
def test_a_damaged_folder_is_an_error_that_names_the_file(
    folder: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(folder)
    with pytest.raises(InputError, match=message):
        Stored(folder)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.*found nothing"):
        Stored(tmp_path / "absent")


def test_a_file_of_code_is_not_run(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (folder / "ran",))

    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="weights_only"):
        Stored(folder)
    assert not (folder / "ran").exists()


def _gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.gguf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_gguf, "GGUF"),
        (lambda folder: _edit_config(folder, quantization_config={"quant_method": "gptq"}), "gptq"),
        (lambda folder: _add(folder, **{"model.layers.0.mlp.up_proj.qweight": torch.ones(2, 2)}), "up_proj.qweight"),
        (lambda folder: _add(folder, **{"model.layers.0.mlp.up_proj.SCB": torch.ones(2)}), "up_proj.SCB"),
        (lambda folder: _add(folder, **{"x.weight": torch.ones(2, 2, dtype=torch.uint8)}), "x.weight.*uint8"),
        (lambda folder: _add(folder, **{"x.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)}), "x.weight.*float8"),
        (lambda folder: _edit_config(folder, model_type="novel", auto_map={"AutoConfig": "a.B"}), "novel.*own code"),
        (lambda folder: _edit_config(folder, model_type="novel"), "novel.*unknown"),
    ],
)
def test_unsupported_kinds_are_refused_by_name(folder: Path, change: Callable[[Path], None], message: str) -> None:
    change(folder)
    with pytest.raises(UnsupportedError, match=message):
        Stored(folder)


def test_opening_a_folder_reads_no_tensor_and_leaves_files_alone(folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    stored = Stored(folder)
    assert stored.layout.order == Stored(folder).layout.order
    stored.read("model.norm.weight").sum()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_the_module_and_its_folder_have_one_fingerprint(folder: Path) -> None:
    assert InMemory(architectures.build("llama")).fingerprint == Stored(folder).fingerprint
