"""The demo's tokenizer: loses nothing, is the same every time, and knows which tokens are the answer."""

from vecsurgery.demo.unlearning.settings import Settings
from vecsurgery.demo.unlearning.tokenizer import encode_questions, encode_sentences, make_tokenizer
from vecsurgery.demo.unlearning.world import make_world

WORLD = make_world(0, Settings())


def test_same_world_gives_the_same_tokenizer_file() -> None:
    assert make_tokenizer(WORLD, 512).to_str() == make_tokenizer(WORLD, 512).to_str()


def test_any_text_survives_the_round_trip() -> None:
    tokenizer = make_tokenizer(WORLD, 512)
    text = "Where  does Ünal live?\n\t42 naïve 鳥 🐦"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_answer_tokens_spell_the_answer_and_nothing_else() -> None:
    tokenizer = make_tokenizer(WORLD, 384)
    encoded = encode_questions(tokenizer, WORLD.forget)
    assert max(len(row.answer) for row in encoded) > 1
    for row, given in zip(encoded, WORLD.forget, strict=True):
        assert tokenizer.decode([row.ids[index] for index in row.answer]) == f" {given.answer}"


def test_sequences_begin_and_end_with_one_special_token_each() -> None:
    tokenizer = make_tokenizer(WORLD, 512)
    for row in [*encode_questions(tokenizer, WORLD.retain), *encode_sentences(tokenizer, WORLD.general)]:
        assert row.ids[0] == tokenizer.token_to_id("<s>")
        assert row.ids[-1] == tokenizer.token_to_id("</s>")
        assert min(row.ids[1:-1]) > tokenizer.token_to_id("<pad>")
