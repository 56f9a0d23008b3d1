"""Roles, heads and rows of a matrix, checked against what attention does when those rows are silenced."""

from typing import Any

import architectures
import pytest
import torch
from torch import Tensor

from vecsurgery.checkpoint import InMemory, Layout, Part
from vecsurgery.checkpoint.parts import parts_of

ATTENTION = [name for name in architectures.CONFIGURATIONS if name != "jamba"]
LAYER = 0


def _find(layout: Layout, role: str) -> tuple[str, Part]:
    """The parameter of the first block that holds this role, and the part."""
    return next(
        (info.parameter, part)
        for info in layout.tensors.values()
        if info.matrix is not None and info.matrix.layer == LAYER
        for part in info.matrix.parts
        if part.role == role
    )


def _rows(part: Part, head: int) -> list[int]:
    rows = [row for start, stop in part.rows for row in range(start, stop)]
    return rows[head * part.head_dim : (head + 1) * part.head_dim]


def _mixed(name: str, role: str | None = None, head: int = 0) -> Tensor:
    """What the attention output of the first block reads, heads apart, with one head's rows of `role` set to zero."""
    model = architectures.build(name)
    layout = InMemory(model).layout
    output, o_part = _find(layout, "o")
    if role is not None:
        parameter, part = _find(layout, role)
        _silence(model, layout, parameter, _rows(part, head))
    read = architectures.watch(model).inputs[output].flatten(0, -2)
    return read.unflatten(-1, (o_part.heads, o_part.head_dim))


def _silence(model: Any, layout: Layout, parameter: str, rows: list[int]) -> None:
    weight = model.get_parameter(parameter)
    transposed = layout.by_parameter()[parameter].matrix.transposed  # type: ignore[union-attr]
    with torch.no_grad():
        (weight.T if transposed else weight)[rows] = 0.0
        bias = getattr(model.get_submodule(parameter.rpartition(".")[0]), "bias", None)
        if bias is not None:
            bias[rows] = 0.0


@pytest.mark.parametrize("name", ATTENTION)
def test_silent_value_rows_silence_the_query_heads_of_their_group_and_no_other(name: str) -> None:
    plain, values = _mixed(name), _find(InMemory(architectures.build(name)).layout, "v")[1]
    group = plain.shape[1] // values.heads
    for head in range(values.heads):
        mixed = _mixed(name, "v", head)
        inside = torch.zeros(plain.shape[1], dtype=torch.bool)
        inside[head * group : (head + 1) * group] = True
        assert torch.all(mixed[:, inside] == 0.0)
        assert torch.equal(mixed[:, ~inside], plain[:, ~inside])


@pytest.mark.parametrize("name", ATTENTION)
def test_silent_query_and_key_rows_give_the_same_flat_attention_of_the_same_heads(name: str) -> None:
    plain, keys = _mixed(name), _find(InMemory(architectures.build(name)).layout, "k")[1]
    heads = plain.shape[1]
    group = heads // keys.heads
    for head in range(heads):
        by_query, by_key = _mixed(name, "q", head), _mixed(name, "k", head // group)
        others = [other for other in range(heads) if other != head]
        assert torch.equal(by_query[:, others], plain[:, others])
        assert not torch.allclose(by_query[:, head], plain[:, head], atol=1e-5)
        torch.testing.assert_close(by_query[:, head], by_key[:, head], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", architectures.CONFIGURATIONS)
def test_parts_cover_every_output_row_once(name: str) -> None:
    layout = InMemory(architectures.build(name)).layout
    for info in layout.tensors.values():
        if info.matrix is None:
            continue
        outputs = info.shape[1] if info.matrix.transposed else info.shape[0]
        rows = [row for part in info.matrix.parts for start, stop in part.rows for row in range(start, stop)]
        assert sorted(rows) == list(range(outputs))


def test_gate_and_up_of_a_fused_matrix_are_its_first_and_second_half() -> None:
    model = architectures.build("phi3")
    layout = InMemory(model).layout
    (gate_tensor, gate), (up_tensor, up) = _find(layout, "gate"), _find(layout, "up")
    assert gate_tensor == up_tensor
    down, _ = _find(layout, "down")
    _silence(model, layout, up_tensor, list(range(*up.rows[0])))
    assert torch.all(architectures.watch(model).inputs[down] == 0.0)
    assert gate.rows == ((0, 40),)


@pytest.mark.parametrize(("name", "expected"), [("qwen3", 12), ("gemma3", 12), ("llama", 8)])
def test_head_size_comes_from_the_shapes_not_from_hidden_size_over_heads(name: str, expected: int) -> None:
    layout = InMemory(architectures.build(name)).layout
    assert {_find(layout, role)[1].head_dim for role in "qkvo"} == {expected}
    assert [_find(layout, role)[1].heads for role in "qkvo"] == [4, 2, 2, 4]


def test_a_fused_matrix_of_unknown_layout_is_one_part_of_role_other() -> None:
    config = architectures.CONFIGURATIONS["llama"]()
    assert parts_of("model.layers.0.self_attn.qkv_proj", 96, 32, config) == (Part("other", ((0, 96),)),)


def test_gates_inside_of_attention_are_not_the_gate_of_the_feed_forward() -> None:
    config = architectures.CONFIGURATIONS["llama"]()
    assert parts_of("model.layers.0.self_attn.gate_proj", 32, 32, config)[0].role == "other"
    assert parts_of("model.layers.0.linear_attn.out_proj", 32, 32, config)[0].role == "other"
    assert parts_of("model.layers.0.mamba.out_proj", 32, 32, config)[0].role == "other"
