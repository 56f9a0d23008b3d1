"""Tying follows `into`: a delta for one tensor under two names must be one delta."""

import pytest
import torch
from delta_fakes import Fake, fake, with_tensor

from vecsurgery.delta import Difference, check_tying
from vecsurgery.errors import InputError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TIED = {HEAD: EMBEDDING}


def tied(seed: int) -> Fake:
    return fake({EMBEDDING: torch.randn(9, 4, generator=torch.Generator().manual_seed(seed))}, tied=TIED)


def untied(embedding: torch.Tensor, head: torch.Tensor) -> Fake:
    return fake({EMBEDDING: embedding, HEAD: head})


def test_models_that_all_tie_need_no_comparison() -> None:
    base, tuned = tied(0), tied(1)
    source = Difference("x", tuned, base, base)
    check_tying(source)
    assert not tuned.reads
    assert source.names == (EMBEDDING,)


def test_an_untied_tuned_model_with_equal_tables_fits_a_tied_into() -> None:
    base = tied(0)
    table = torch.randn(9, 4)
    source = Difference("x", untied(table, table.clone()), base, base)
    check_tying(source)
    delta = source.read(EMBEDDING)
    assert delta is not None
    assert torch.equal(delta.dense(), table - base.tensors[EMBEDDING])


def test_an_untied_tuned_model_with_two_deltas_is_refused_unless_both_are_dropped() -> None:
    base = tied(0)
    source = Difference("x", untied(torch.randn(9, 4), torch.randn(9, 4)), base, base)
    with pytest.raises(InputError, match=r"ties 'lm_head\.weight' to 'model\.embed_tokens\.weight'"):
        check_tying(source)
    check_tying(source, others="drop")


def test_a_tensor_repeated_in_a_tied_into_takes_the_delta_of_the_one_that_counts() -> None:
    table = torch.randn(9, 4)
    into = fake({EMBEDDING: table, HEAD: table.clone()}, tied=TIED)
    base, tuned = tied(0), tied(1)
    source = Difference("x", tuned, base, into)
    check_tying(source)
    first, second = source.read(EMBEDDING), source.read(HEAD)
    assert first is not None
    assert second is not None
    assert torch.equal(first.dense(), second.dense())


def test_tied_models_give_both_tables_of_an_untied_into_the_same_delta() -> None:
    base, tuned = tied(0), tied(1)
    into = untied(torch.randn(9, 4), torch.randn(9, 4))
    source = Difference("x", tuned, base, into)
    check_tying(source)
    expected = tuned.tensors[EMBEDDING] - base.tensors[EMBEDDING]
    for name in (EMBEDDING, HEAD):
        delta = source.read(name)
        assert delta is not None
        assert torch.equal(delta.dense(), expected)
    assert source.unmatched() == {}


def test_only_the_changed_table_decides_between_untied_models() -> None:
    into, table = tied(0), torch.randn(9, 4)
    base = untied(table, table)
    same = Difference("x", with_tensor(with_tensor(base, EMBEDDING, table + 1), HEAD, table + 1), base, into)
    check_tying(same)
    with pytest.raises(InputError, match="changes them differently"):
        check_tying(Difference("x", with_tensor(base, HEAD, table + 1), base, into))
