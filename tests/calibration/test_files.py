"""Data files are read in three formats, and every fault names its file and line."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsurgery.calibration.files import read_entries
from vecsurgery.errors import InputError


def _written(folder: Path, content: str | bytes, name: str) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def test_json_lines_skip_blank_lines_and_count_them(tmp_path: Path) -> None:
    path = _written(tmp_path, '{"text": "a"}\r\n\r\n  \n{"text": "b"}', "rows.jsonl")
    assert [(entry.where, entry.value) for entry in read_entries(path)] == [
        (f"{path}:1", {"text": "a"}),
        (f"{path}:4", {"text": "b"}),
    ]


def test_line_separators_of_unicode_do_not_break_a_json_line(tmp_path: Path) -> None:
    path = _written(tmp_path, '{"text": "one\u2028two\x85three"}\n', "rows.jsonl")
    assert [entry.value for entry in read_entries(path)] == [{"text": "one\u2028two\x85three"}]


def test_json_list_items_know_their_line(tmp_path: Path) -> None:
    path = _written(tmp_path, '\ufeff[\n  {"text": "a",\n   "id": 1},\n\n  {"text": "b"}\n]\n', "rows.json")
    assert [entry.where for entry in read_entries(path)] == [f"{path}:2", f"{path}:5"]


def test_json_lines_under_the_name_json_are_read(tmp_path: Path) -> None:
    path = _written(tmp_path, '{"text": "a"}\n{"text": "b"}\n', "rows.json")
    assert len(read_entries(path)) == 2


def test_plain_text_is_one_entry_per_block_between_blank_lines(tmp_path: Path) -> None:
    path = _written(tmp_path, "\n first\r\nstill first\r\n \t\r\n\r\n{second}\n\n\nthird", "rows.txt")
    assert [(entry.where, entry.value) for entry in read_entries(path)] == [
        (f"{path}:2", {"text": " first\nstill first"}),
        (f"{path}:6", {"text": "{second}"}),
        (f"{path}:9", {"text": "third"}),
    ]


@pytest.mark.parametrize("name", ["rows", "rows.data"])
def test_other_names_are_json_lines_where_the_text_begins_with_a_brace(tmp_path: Path, name: str) -> None:
    assert read_entries(_written(tmp_path, '{"prompt": "a"}', name))[0].value == {"prompt": "a"}
    assert read_entries(_written(tmp_path, "plain", name))[0].value == {"text": "plain"}


@pytest.mark.parametrize(
    ("content", "name", "line"),
    [
        ('{"text": "a"}\n{"text": \n', "rows.jsonl", 2),
        ('[\n{"text": "a"}\n{"text": "b"}]', "rows.json", 3),
        ('[\n{"text": "a"},\n\n', "rows.json", 4),
        ('[{"text": "a"}]\n\nmore', "rows.json", 3),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "rows.jsonl", 2),
        (b"first\n\n\xe9\n", "rows.txt", 3),
    ],
)
def test_a_fault_names_file_and_line(tmp_path: Path, content: str | bytes, name: str, line: int) -> None:
    path = _written(tmp_path, content, name)
    with pytest.raises(InputError, match=f"{name}:{line}: not"):
        read_entries(path)


def test_a_missing_file_is_an_error_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.jsonl: No such file"):
        read_entries(tmp_path / "nothing.jsonl")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.dictionaries(st.text(max_size=3), _VALUES, max_size=3), max_size=5),
    indent=st.sampled_from([None, 1]),
)
def test_a_json_list_and_json_lines_say_the_same(
    tmp_path_factory: pytest.TempPathFactory, values: list[object], indent: int | None
) -> None:
    folder = tmp_path_factory.mktemp("data")
    listed = _written(folder, json.dumps(values, indent=indent), "list.json")
    lined = _written(folder, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), "lines.jsonl")
    assert [entry.value for entry in read_entries(listed)] == values
    assert [entry.value for entry in read_entries(lined)] == values
