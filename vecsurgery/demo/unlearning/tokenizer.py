"""The unlearning demo's tokenizer, trained on the world's text, and rows as ids with labels."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vecsurgery.demo.tokens import END, SPECIAL_TOKENS, Encoded, byte_level, encode_answered
from vecsurgery.demo.unlearning.world import Question, World

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def prompt_of(row: Question) -> str:
    """The text before the answer: calibration renders question/answer rows the same way where no template is."""
    return f"Question: {row.question}\nAnswer:"


def make_tokenizer(world: World, vocabulary: int) -> "Tokenizer":
    """A byte-level BPE tokenizer of at most `vocabulary` tokens that puts `<s>` first; same world, same file."""
    texts = [f"{prompt_of(row)} {row.answer}" for row in world.full]
    return byte_level([*texts, *world.general, *world.general_test], vocabulary)


def encode_questions(tokenizer: "Tokenizer", rows: Sequence[Question]) -> list[Encoded]:
    """Each row as `<s>prompt answer</s>`."""
    return [encode_answered(tokenizer, prompt_of(row), f" {row.answer}") for row in rows]


def encode_sentences(tokenizer: "Tokenizer", sentences: Sequence[str]) -> list[Encoded]:
    """Each sentence as `<s>sentence</s>`; it has no answer."""
    return [Encoded((*tokenizer.encode(text).ids, SPECIAL_TOKENS.index(END)), ()) for text in sentences]
