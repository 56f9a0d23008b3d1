"""A tokenizer is loaded without code, and one that disagrees with its own file stops the run."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from tests.calibration.tiny import byte_level, byte_tokenizer, saved, word_level, wrapped
from vecsurgery.calibration import has_tokenizer, load_tokenizer, sanity
from vecsurgery.errors import InputError, UnsupportedError


def test_a_saved_tokenizer_is_loaded_and_agrees_with_its_file(tmp_path: Path) -> None:
    folder = saved(tmp_path, byte_level(bos=True, tags=("<think>", "</think>")))
    tokenizer = load_tokenizer(folder)
    assert sanity(folder, tokenizer) == ()
    assert tokenizer("Why?")["input_ids"][0] == 0


def test_a_folder_without_tokenizer_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert not has_tokenizer(tmp_path)
    with pytest.raises(InputError, match=r"found none of tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"version": "1.0", "added_tokens": [], "model": {"type": "?"}}'])
def test_damaged_files_are_an_input_error(tmp_path: Path, content: str) -> None:
    folder = saved(tmp_path, byte_level())
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="its files cannot be read"):
        load_tokenizer(folder)


def test_a_tokenizer_that_asks_for_its_own_code_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, byte_level(), tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})
    (folder / "own.py").write_text("raise SystemExit('this code was run')\n")
    with pytest.raises(InputError, match="loading the tokenizer"):
        load_tokenizer(folder)


def test_a_tokenizer_without_offsets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "<unk>": 1}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CTRLTokenizer"}))
    with pytest.raises(UnsupportedError, match="no character offsets"):
        load_tokenizer(tmp_path)


def test_other_ids_than_the_file_gives_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, byte_level())
    spaceless = byte_level()
    spaceless.pre_tokenizer = None
    for other in (wrapped(spaceless), wrapped(word_level(["fox"]), unk_token="[UNK]")):
        with pytest.raises(InputError, match=r"became \[.*\], but its tokenizer\.json says \["):
            sanity(folder, other)


def test_an_added_token_that_is_lost_is_noticed(tmp_path: Path) -> None:
    folder = saved(tmp_path, byte_level(tags=("<tool>",)))
    with pytest.raises(InputError, match="before<tool> after"):
        sanity(folder, byte_tokenizer())


def test_padding_and_truncation_in_the_file_do_not_disturb_the_comparison(tmp_path: Path) -> None:
    raw = byte_level()
    raw.enable_truncation(3)
    raw.enable_padding(length=50)
    folder = saved(tmp_path, raw)
    assert sanity(folder, load_tokenizer(folder)) == ()


def test_without_tokenizer_json_the_check_says_that_it_could_not_be_made(tmp_path: Path) -> None:
    (warning,) = sanity(tmp_path, wrapped(Tokenizer(models.WordLevel({"a": 0}, "a"))))
    assert "has no tokenizer.json" in warning
