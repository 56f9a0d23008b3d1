"""Tiny tokenizers, made on the spot."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = (
    "Question: Who wrote the book?\nAnswer: Ada wrote the book. <think>\nLet me see. It was Ada.\n</think>\n\n",
    "user assistant system one two  three four five six seven eight nine ten",
)


def byte_level(*, bos: bool = False, end: bool = False, tags: Sequence[str] = (), trim: bool = True) -> Tokenizer:
    """Byte-level BPE; `tags` become single added tokens, `bos` and `end` are added by the post-processor."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in tags])
    steps: list[Any] = [processors.ByteLevel(trim_offsets=trim)]
    if bos or end:
        single = f"{'<s> ' if bos else ''}$A{' </s>' if end else ''}"
        steps.append(processors.TemplateProcessing(single=single, special_tokens=[("<s>", 0), ("</s>", 1)]))
    tokenizer.post_processor = processors.Sequence(steps)
    return tokenizer


def word_level(words: Sequence[str]) -> Tokenizer:
    """Words between white space; white space itself has no token."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, **{word: i + 1 for i, word in enumerate(words)}}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def wrapped(tokenizer: Tokenizer, template: str | None = None, **names: str) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers gives it."""
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    made.chat_template = template
    return made


def byte_tokenizer(template: str | None = None, **options: Any) -> PreTrainedTokenizerFast:
    """A wrapped `byte_level` tokenizer with the usual names."""
    return wrapped(byte_level(**options), template, bos_token="<s>", eos_token="</s>")


def saved(folder: Path, tokenizer: Tokenizer, **config: object) -> Path:
    """A folder with the files of a tokenizer."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
