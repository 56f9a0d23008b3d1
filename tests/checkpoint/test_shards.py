"""Planning of output files: sizes, names, headers, alignment."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vecsurgery.checkpoint.shards import index_text, plan_shards
from vecsurgery.errors import InputError, UnsupportedError

TYPES = ["bool", "uint8", "float8_e4m3fn", "float16", "bfloat16", "int32", "float32", "int64", "float64"]

tensor_lists = st.lists(
    st.tuples(st.sampled_from(TYPES), st.lists(st.integers(0, 9), max_size=3).map(tuple)), min_size=1, max_size=20
).map(lambda entries: [(f"t{number}", dtype, shape) for number, (dtype, shape) in enumerate(entries)])


@settings(max_examples=60, deadline=None)
@given(tensor_lists, st.integers(1, 3000))
def test_every_tensor_stands_once_in_walking_order_and_no_shard_exceeds_the_size(
    tensors: list[tuple[str, str, tuple[int, ...]]], size: int
) -> None:
    shards = plan_shards(tensors, size)
    names = [sorted(int(tensor.name[1:]) for tensor in shard.tensors) for shard in shards]
    assert [number for shard in names for number in shard] == list(range(len(tensors)))
    for shard in shards:
        assert shard.nbytes <= size or len([tensor for tensor in shard.tensors if tensor.nbytes]) == 1


@settings(max_examples=60, deadline=None)
@given(tensor_lists)
def test_every_tensor_is_aligned_to_its_element_and_the_data_have_no_gap(
    tensors: list[tuple[str, str, tuple[int, ...]]],
) -> None:
    (shard,) = plan_shards(tensors, 10**9)
    header = shard.header()
    assert len(header) % 8 == 0
    entries = json.loads(header[8:])
    assert entries.pop("__metadata__") == {"format": "pt"}
    end = 0
    for tensor in shard.tensors:
        start, stop = entries[tensor.name]["data_offsets"]
        assert start == end
        assert start % tensor.itemsize == 0
        end = stop
    assert end == shard.nbytes


def test_a_tensor_larger_than_the_size_gets_a_file_of_its_own() -> None:
    shards = plan_shards([("a", "float32", (2,)), ("big", "float32", (100,)), ("b", "float32", (2,))], 16)
    assert [[tensor.name for tensor in shard.tensors] for shard in shards] == [["a"], ["big"], ["b"]]
    assert [shard.file for shard in shards] == [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]


def test_one_file_needs_no_index_and_several_are_mapped() -> None:
    tensors = [("a", "float32", (2,)), ("b", "bfloat16", (4,))]
    (single,) = plan_shards(tensors, 100)
    assert single.file == "model.safetensors"
    assert index_text([single]) is None
    text = index_text(plan_shards(tensors, 8))
    assert text is not None
    assert json.loads(text) == {
        "metadata": {"total_size": 16},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }


def test_repeats_unknown_types_and_empty_files_are_refused_by_name() -> None:
    with pytest.raises(InputError, match="'a' comes twice"):
        plan_shards([("a", "float32", (2,)), ("a", "float32", (2,))], 100)
    with pytest.raises(UnsupportedError, match="'q' has type 'quint8'"):
        plan_shards([("q", "quint8", (2,))], 100)
    with pytest.raises(InputError, match="shard_size is 0"):
        plan_shards([("a", "float32", (2,))], 0)
