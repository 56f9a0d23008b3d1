"""What `smoke` feeds a model where the recipe brings no text: a few sentences, or ids where there is no tokenizer."""

import random
from collections.abc import Sequence

from vecsurgery.calibration import Samples, end_tokens, has_tokenizer
from vecsurgery.calibration.types import Sample
from vecsurgery.surgery.inputs import Inputs

_SENTENCES = (
    "The harbour was quiet in the morning, and the boats lay still on the water.",
    "Once upon a time there was a little girl who lived with her grandmother at the edge of a wood.",
    "Question: What is the capital of France?\nAnswer: The capital of France is Paris.",
    "To bake bread you need flour, water, salt and yeast. First mix the flour with the salt.",
)
_IDS, _LENGTH = 4, 32
"""Sequences of arbitrary ids, and their length."""


def probe_samples(inputs: Inputs) -> Samples:
    """Short samples of running text in the ids of `into`'s tokenizer; arbitrary ids where it has none.

    Arbitrary ids tell as well whether logits are finite and how much the edit changed.
    """
    folder = inputs.into.folder
    if has_tokenizer(folder):
        found: Sequence[Sequence[int]] = [inputs.tokenizers[folder](text)["input_ids"] for text in _SENTENCES]
    else:
        choose = random.Random(0).randrange
        size = int(inputs.into.config.get_text_config().vocab_size)
        found = [[choose(size) for _ in range(_LENGTH)] for _ in range(_IDS)]
    samples = tuple(
        Sample(tuple(ids), tuple(range(len(ids))), (), "", f"built-in text {number}")
        for number, ids in enumerate(found, 1)
        if len(ids) > 1
    )
    return Samples(samples, {"samples": len(samples)}, "")


def end_ids(inputs: Inputs) -> frozenset[int]:
    """Ids that end a text of `into`."""
    folder = inputs.into.folder
    if has_tokenizer(folder):
        tokenizer = inputs.tokenizers[folder]
        return frozenset(int(tokenizer.convert_tokens_to_ids(token)) for token in end_tokens(folder, tokenizer))
    ends = inputs.into.config.get_text_config().eos_token_id
    return frozenset(end for end in (ends if isinstance(ends, list) else [ends]) if isinstance(end, int))
