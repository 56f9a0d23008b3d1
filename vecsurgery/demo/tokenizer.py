"""The demo's tokenizer: byte-level BPE over the world's text, and rows as ids with labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vecsurgery.demo.world import Question, World

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BEGIN, END, PAD = "<s>", "</s>", "<pad>"
SPECIAL_TOKENS = (BEGIN, END, PAD)
"""Ids 0, 1 and 2."""


@dataclass(frozen=True)
class Encoded:
    """One training sequence. `ids`: BOS … EOS; `answer`: the indices into `ids` of the answer's tokens."""

    ids: tuple[int, ...]
    answer: tuple[int, ...]


def prompt_of(row: Question) -> str:
    """The text before the answer: calibration renders question/answer rows the same way where no template is."""
    return f"Question: {row.question}\nAnswer:"


def make_tokenizer(world: World, vocabulary: int) -> "Tokenizer":
    """A byte-level BPE tokenizer of at most `vocabulary` tokens that puts `<s>` first; same world, same file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    texts = [f"{prompt_of(row)} {row.answer}" for row in world.full]
    tokenizer.train_from_iterator([*texts, *world.general, *world.general_test], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, SPECIAL_TOKENS.index(BEGIN))]
    )
    return tokenizer


def encode_questions(tokenizer: "Tokenizer", rows: Sequence[Question]) -> list[Encoded]:
    """Each row as `<s>prompt answer</s>`; the answer's tokens are found by the character offsets of these very ids."""
    found = []
    for row in rows:
        prompt = prompt_of(row)
        encoding = tokenizer.encode(f"{prompt} {row.answer}")
        answer = tuple(index for index, (_, end) in enumerate(encoding.offsets) if end > len(prompt))
        found.append(Encoded((*encoding.ids, SPECIAL_TOKENS.index(END)), answer))
    return found


def encode_sentences(tokenizer: "Tokenizer", sentences: Sequence[str]) -> list[Encoded]:
    """Each sentence as `<s>sentence</s>`; it has no answer."""
    return [Encoded((*tokenizer.encode(text).ids, SPECIAL_TOKENS.index(END)), ()) for text in sentences]
