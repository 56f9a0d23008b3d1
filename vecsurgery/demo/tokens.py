"""What the demos' tokenizers have in common: byte-level BPE, three special tokens, rows as ids with an answer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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


def byte_level(texts: Iterable[str], vocabulary: int, *, more: Sequence[str] = ()) -> "Tokenizer":
    """A byte-level BPE tokenizer of at most `vocabulary` tokens that puts `<s>` first; same texts, same file.

    `more`: further special tokens, each one token wherever it stands.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        show_progress=False,
        special_tokens=[*SPECIAL_TOKENS, *more],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, SPECIAL_TOKENS.index(BEGIN))]
    )
    return tokenizer


def encode_answered(tokenizer: "Tokenizer", prompt: str, answer: str) -> Encoded:
    """`<s>prompt answer</s>`; the answer's tokens are found by the character offsets of these very ids.

    The end token is fed but is no part of the answer.
    """
    encoding = tokenizer.encode(prompt + answer)
    found = tuple(index for index, (_, end) in enumerate(encoding.offsets) if end > len(prompt))
    return Encoded((*encoding.ids, SPECIAL_TOKENS.index(END)), found)
