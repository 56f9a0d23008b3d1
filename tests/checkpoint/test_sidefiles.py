"""Side files: byte-identical copies, and a config.json that changes in documented keys only."""

import json
from pathlib import Path

import pytest

from vecsurgery.checkpoint.hashes import file_sha256
from vecsurgery.checkpoint.sidefiles import config_bytes, copy_side_files, plan_side_files
from vecsurgery.errors import InputError

COPIED = [
    "LICENSE", "added_tokens.json", "additional_chat_templates/tools.jinja", "chat_template.jinja",
    "chat_template.json", "generation_config.json", "merges.txt", "special_tokens_map.json", "tokenizer.json",
    "tokenizer.model", "tokenizer_config.json", "vocab.json",
]  # fmt: skip
LEFT_OUT = [
    ".gitattributes", "README.md", "adapter_config.json", "config.json", "modeling_custom.py", "model-1.safetensors",
    "model.safetensors.index.json", "onnx/", "optimizer.pt", "pytorch_model.bin", "rng_state_0.pth", "surgery.json",
    "trainer_state.json", "training_args.bin", "weights.gguf",
]  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for name in [*COPIED, *LEFT_OUT]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_bytes(f"{name}\r\n\xff".encode("latin-1"))
    return folder


def test_everything_but_weights_cards_code_and_training_state_is_copied(source: Path) -> None:
    plan = plan_side_files(source)
    assert sorted(plan.copied) == COPIED
    assert sorted(plan.left_out) == sorted(LEFT_OUT)


def test_copies_are_byte_identical_through_links(source: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    blob.write_bytes(b'{"a": 1}')
    (source / "vocab.json").unlink()
    (source / "vocab.json").symlink_to(blob)
    written = copy_side_files(source, tmp_path / "copy", plan_side_files(source).copied)
    assert sorted(written) == COPIED
    for name in COPIED:
        assert (tmp_path / "copy" / name).read_bytes() == (source / name).read_bytes()
        assert written[name].sha256 == file_sha256(source / name)
        assert not (tmp_path / "copy" / name).is_symlink()


def test_a_link_to_nothing_is_named(source: Path, tmp_path: Path) -> None:
    (source / "vocab.json").unlink()
    (source / "vocab.json").symlink_to(tmp_path / "gone")
    with pytest.raises(InputError, match=r"vocab\.json cannot be read"):
        copy_side_files(source, tmp_path / "copy", plan_side_files(source).copied)


CONFIG = """{
    "rope_theta": 1e6, "rms_norm_eps": 1e-05,
    "torch_dtype":   "bfloat16",
    "text_config": {"dtype": "bfloat16", "name": "Käse"},
    "dtype_note": "bfloat16"
}
"""


def test_the_config_is_copied_byte_for_byte(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(CONFIG, "utf-8")
    assert config_bytes(tmp_path) == CONFIG.encode()


def test_another_output_type_changes_the_type_keys_and_no_other_byte(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(CONFIG, "utf-8")
    expected = CONFIG.replace(':   "bfloat16"', ':   "float32"').replace('"dtype": "bfloat16"', '"dtype": "float32"')
    assert config_bytes(tmp_path, "float32").decode() == expected


@pytest.mark.parametrize("text", ['{"a": 1}', '{"torch_dtype": null, "a": 1, "note": "\\"dtype\\": \\"x\\""}'])
def test_the_type_is_stated_where_the_config_lacks_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    edited = json.loads(config_bytes(tmp_path, "float16"))
    assert edited == {**json.loads(text), "torch_dtype": "float16"}


@pytest.mark.parametrize(("data", "message"), [(b"{", "no JSON"), (b"[]", "holds a list"), (b"\xff", "no JSON")])
def test_a_config_that_is_none_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(InputError, match=message):
        config_bytes(tmp_path, "float32")


def test_a_missing_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        config_bytes(tmp_path)
