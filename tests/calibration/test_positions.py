"""Token rules select the very ids that stand for the characters they name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.calibration.tiny import byte_tokenizer, word_level, wrapped
from vecsurgery.calibration.positions import choose, encode, opening_ids
from vecsurgery.calibration.render import Rendered
from vecsurgery.errors import InputError
from vecsurgery.recipe.types import Around, Between, TokenRule

TEXT = "Why? <think>\nLet me see.\n</think>\n\nBecause é."
RENDERED = Rendered(TEXT, 4, (TEXT.index("Because"), len(TEXT)))


def _selected(tokenizer: object, rule: TokenRule, rendered: Rendered = RENDERED) -> str:
    fed = encode(tokenizer, rendered.text, opening_ids(tokenizer))
    return tokenizer.decode([fed.ids[index] for index in choose(rule, rendered, fed, "x:1").positions])


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("tags", [(), ("<think>", "</think>")], ids=["several tokens", "one token"])
@pytest.mark.parametrize("bos", [True, False])
def test_rules_select_by_character(bos: bool, tags: tuple[str, ...], trim: bool) -> None:
    tokenizer = byte_tokenizer(bos=bos, tags=tags, trim=trim)
    assert _selected(tokenizer, "all") == ("<s>" if bos else "") + TEXT
    assert _selected(tokenizer, "response") == TEXT[4:]
    between = _selected(tokenizer, Between("<think>", "</think>"))
    assert between.strip() == "<think>\nLet me see.\n</think>"


def test_around_takes_the_tokens_of_each_tag_and_its_neighbours() -> None:
    tokenizer = byte_tokenizer(tags=("<think>", "</think>"))
    assert _selected(tokenizer, Around(("</think>",), before=0)) == "</think>"
    fed = encode(tokenizer, TEXT, ())
    place = fed.ids.index(tokenizer.convert_tokens_to_ids("</think>"))
    assert choose(Around(("</think>",)), RENDERED, fed, "x:1").positions == (place - 1, place)
    assert choose(Around(("</think>",), 2, 1), RENDERED, fed, "x:1").positions == tuple(range(place - 2, place + 2))


def test_around_stays_inside_the_sample() -> None:
    tokenizer = byte_tokenizer(tags=("<think>", "</think>"))
    fed = encode(tokenizer, "<think>a</think>", ())
    rule = Around(("<think>", "</think>"), before=9, after=9)
    chosen = choose(rule, Rendered("<think>a</think>", 0, None), fed, "x:1")
    assert chosen.positions == tuple(range(len(fed.ids)))


def test_a_word_level_tokenizer_without_tokens_for_spaces_is_selected_right() -> None:
    words = ["Why?", "<think>", "Let", "me", "see.", "</think>", "Because", "é."]
    tokenizer = wrapped(word_level(words), unk_token="[UNK]")
    assert _selected(tokenizer, Between("<think>", "</think>")) == "<think> Let me see. </think>"
    assert _selected(tokenizer, "response") == "<think> Let me see. </think> Because é."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no tags", "x:1: the rendered sample holds the tag '<think>' 0 times"),
        ("<think>a", "'</think>' 0 times"),
        ("<think>a</think><think>", "'<think>' 2 times"),
        ("</think>a<think>", "comes before"),
    ],
)
def test_each_tag_must_occur_once_and_in_order(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _selected(byte_tokenizer(), Between("<think>", "</think>"), Rendered(text, 0, None))


def test_the_bos_is_added_once_and_no_end_token() -> None:
    for tokenizer in (byte_tokenizer(bos=True), byte_tokenizer(bos=True, end=True)):
        assert opening_ids(tokenizer) == (0,)
        for text in ("Why?", "<s>Why?", "\n<s>Why?"):
            fed = encode(tokenizer, text, opening_ids(tokenizer))
            assert fed.ids.count(0) == 1
            assert fed.ids.count(1) == 0


def test_no_bos_is_added_where_the_tokenizer_adds_none() -> None:
    assert opening_ids(byte_tokenizer()) == ()
    assert 0 not in encode(byte_tokenizer(), "Why?", ()).ids


@settings(max_examples=60, deadline=None)
@given(
    before=st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=12),
    middle=st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=12),
    after=st.text(st.characters(codec="utf-8", exclude_characters="<>"), max_size=12),
)
def test_tags_that_are_tokens_bound_the_span_exactly(before: str, middle: str, after: str) -> None:
    tokenizer = _TAGGED
    text = f"{before}<think>{middle}</think>{after}"
    fed = encode(tokenizer, text, (0,))
    chosen = choose(Between("<think>", "</think>"), Rendered(text, len(before), None), fed, "x:1")
    first, last = (fed.ids.index(tokenizer.convert_tokens_to_ids(tag)) for tag in ("<think>", "</think>"))
    assert chosen.positions == tuple(range(first, last + 1))
    assert chosen.needed == last + 1
    response = choose("response", Rendered(text, len(before), None), fed, "x:1")
    assert response.positions == tuple(range(first, len(fed.ids)))


_TAGGED = byte_tokenizer(bos=True, tags=("<think>", "</think>"))
