"""What the result is measured on: the rows of `evaluate` and `gates`, and what `smoke` feeds a model."""

import random
from collections.abc import Sequence
from dataclasses import replace

from vecsurgery.calibration import Samples, end_tokens, has_tokenizer
from vecsurgery.calibration.types import Sample
from vecsurgery.evaluation import Source
from vecsurgery.planning.inputs import Inputs
from vecsurgery.recipe.types import GateSpec

MODELS = ("into", "raw", "edited")
SMOKE_SAMPLES = 32
"""Most calibration samples that `smoke` takes the perplexity of."""
CONTINUATIONS, CONTINUED = 4, 64
"""Greedy continuations that `smoke` looks at, and their tokens."""
_SENTENCES = (
    "The harbour was quiet in the morning, and the boats lay still on the water.",
    "Once upon a time there was a little girl who lived with her grandmother at the edge of a wood.",
    "Question: What is the capital of France?\nAnswer: The capital of France is Paris.",
    "To bake bread you need flour, water, salt and yeast. First mix the flour with the salt.",
)
_IDS, _LENGTH = 4, 32
"""Sequences of arbitrary ids, and their length."""


def judged_models(inputs: Inputs) -> list[str]:
    """The models that are measured: raw only where something is compared with it."""
    needs_raw = bool(inputs.recipe.evaluate) or any(gate.measure == "forgetting" for gate in inputs.recipe.gates)
    return [name for name in MODELS if name != "raw" or needs_raw]


def key(index: int) -> str:
    """Name of a gate's rows; no name of `evaluate` has a space."""
    return f"gate {index}"


def judged_sources(inputs: Inputs) -> dict[str, Source]:
    """Rows of `evaluate` by name, and of the gates that score given text."""
    sources = {name: Source(samples, inputs.other_answers(name)) for name, samples in inputs.evaluation.items()}
    for index, gate in enumerate(inputs.recipe.gates):
        if gate.measure == "smoke":
            sources[key(index)] = Source(smoke_samples(inputs))
        elif gate.writing is None:
            sources[key(index)] = Source(_as_asked(gate, inputs.gate_samples[index]))
    return sources


def _as_asked(gate: GateSpec, samples: Samples) -> Samples:
    """Rows of perplexity count as running text, whatever fields they came in."""
    return _as_text(samples) if gate.measure == "perplexity_ratio" else samples


def _as_text(samples: Samples) -> Samples:
    return replace(samples, samples=tuple(replace(sample, answer=(), answers=False) for sample in samples.samples))


def smoke_samples(inputs: Inputs) -> Samples:
    """The first calibration samples that were made for `into`, or a few built-in sentences where there are none: a
    geometry of another model has the ids of its tokenizer.
    """
    first = next((samples for name, samples in inputs.samples.items() if inputs.models[name] is inputs.into), None)
    chosen = [sample for sample in first.samples if len(sample.ids) > 1] if first is not None else []
    found = probe_samples(inputs) if first is None or not chosen else replace(first, samples=tuple(chosen))
    return _as_text(replace(found, samples=found.samples[:SMOKE_SAMPLES]))


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
