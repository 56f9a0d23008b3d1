"""What a merged model answers: many prompts in one batch, taken apart and checked by the package's own functions.

`vecsurgery evaluate` asks prompts one at a time, each with a seed of its own; here all draws of a file share one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.reasoning.merging import State
from vecsurgery.calibration import Prompt, asking_rows, load_tokenizer, prompts
from vecsurgery.evaluation import RowChecks, Thought, Written, row_checks, thought
from vecsurgery.recipe.types import DataSpec

_TAGS = ("<think>", "</think>")


@dataclass(frozen=True)
class Asked:
    """Prompts of a file, with the checkers of their rows."""

    prompts: tuple[Prompt, ...]
    checks: tuple[RowChecks, ...]


@dataclass(frozen=True)
class Shares:
    """Of all generations: right, obeying, both (None without instructions), in think format."""

    right: float
    obeys: float | None
    both: float | None
    well_formed: float
    closed: float


class Answering:
    """One architecture in memory that takes the weights of any model of its family."""

    def __init__(self, folder: Path, longest: int) -> None:
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = load_tokenizer(folder)
        self._own = self._model.generation_config
        self._longest = longest

    def asked(self, rows: Path) -> Asked:
        """The rows of a file as this family's reasoning model is asked them."""
        spec = DataSpec((rows,))
        found = prompts(asking_rows(spec), spec, self._tokenizer, _TAGS)
        return Asked(tuple(found), tuple(row_checks(prompt.row) for prompt in found))

    def load(self, state: State) -> None:
        """Take these weights. Raises RuntimeError for a name that the model lacks."""
        missing, unexpected = self._model.load_state_dict(
            {name: weight.float() for name, weight in state.items()}, strict=False
        )
        if unexpected or set(missing) - {"lm_head.weight"}:
            raise RuntimeError(f"weights do not fit: missing {missing}, unexpected {unexpected}")

    def shares(self, asked: Asked, *, samples: int | None, seed: int = 0) -> Shares:
        """What the loaded model answers: greedily where `samples` is None, else so many draws by its own config."""
        drawn = self._thoughts(asked.prompts, samples, seed)
        pairs = list(zip(drawn, (check for check in asked.checks for _ in range(samples or 1)), strict=True))
        right = [_passes(each, check.right) for each, check in pairs]
        obeys = [_passes(each, check.obeys) for each, check in pairs if check.obeys is not None]
        both = [a and b for a, b in zip(right, obeys, strict=True)] if obeys else []
        return Shares(
            _mean(right),
            _mean(obeys) if obeys else None,
            _mean(both) if both else None,
            _mean([each.well_formed for each in drawn]),
            _mean([each.closed for each in drawn]),
        )

    def _thoughts(self, asked: Sequence[Prompt], samples: int | None, seed: int) -> list[Thought]:
        """The generations of every prompt in turn."""
        written = self._generated([list(prompt.ids) for prompt in asked], samples, seed)
        repeated = [prompt for prompt in asked for _ in range(samples or 1)]
        return [
            thought(each, self._text, prompt=prompt.text, tags=_TAGS)
            for prompt, each in zip(repeated, written, strict=True)
        ]

    def _generated(self, ids: list[list[int]], samples: int | None, seed: int) -> list[Written]:
        """New tokens behind left-padded prompts, up to the end token."""
        longest = max(map(len, ids))
        pad, end = self._own.pad_token_id, self._own.eos_token_id
        padded = torch.tensor([[pad] * (longest - len(row)) + row for row in ids])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids])
        options: dict[str, Any] = {"max_new_tokens": self._longest, "pad_token_id": pad, "eos_token_id": end}
        if samples is None:
            options |= {"do_sample": False, "temperature": None, "top_p": None}
        else:
            options |= {"do_sample": True, "num_return_sequences": samples}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            found = self._model.generate(padded, attention_mask=mask, **options)[:, longest:].tolist()
        return [self._written(row, end) for row in found]

    def _written(self, ids: list[int], end: int) -> Written:
        place = ids.index(end) if end in ids else len(ids)
        return Written(tuple(ids[:place]), self._text(ids[:place]), place < len(ids))

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def _passes(each: Thought, check: Any) -> bool:
    return each.answer is not None and bool(check(each.answer))


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values)
