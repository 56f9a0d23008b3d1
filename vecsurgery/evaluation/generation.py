"""Generated measures: what a model writes when asked, greedily and sampled; the whole model is loaded for it."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsurgery.calibration import Row, Samples
from vecsurgery.errors import InputError, NotFiniteError
from vecsurgery.evaluation.extras import rouge_recall
from vecsurgery.evaluation.leak import leak_at_k
from vecsurgery.evaluation.thinking import Written
from vecsurgery.evaluation.types import Figure
from vecsurgery.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

    from vecsurgery.forward import Compute

WRITTEN_TOGETHER = 32
"""Answers that are written at the same time."""
_NOT_FINITE = "probability tensor contains either"
"""What torch says where it cannot draw."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn. `count`: n of each question; `seed`: with the row, decides every draw.

    `temperature` > 0 divides the logits; `top_p` in (0, 1] keeps the most probable tokens of that total. Nothing of the
    model's own generation_config.json is used, so that all models are asked alike.
    """

    count: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Asked:
    """Questions for a model. `prompts`: token ids up to the answer; `expected`: the true answers; `ids`: the rows.

    `index`: number of each among the samples that it was taken from.
    """

    prompts: tuple[tuple[int, ...], ...]
    expected: tuple[str, ...]
    ids: tuple[str, ...]
    index: tuple[str, ...]


def questions(samples: Samples, rows: Sequence[Row]) -> Asked:
    """The samples that have an answer, as prompts: exactly the ids behind which the streamed measures score it.

    `rows`: the row behind each sample (`calibration.rows_of`). Raises InputError where no sample has an answer.
    """
    chosen = [
        (str(number), sample, row)
        for number, (sample, row) in enumerate(zip(samples.samples, rows, strict=True))
        if sample.answer
    ]
    if not chosen:
        raise InputError(
            f"generating answers: none of {len(samples.samples)} samples has an answer to compare with; expected rows "
            "with a response field, such as question/answer or prompt/response"
        )
    return Asked(
        tuple(sample.ids[: sample.answer[0]] for _, sample, _ in chosen),
        tuple(row.response.strip() for _, _, row in chosen),
        tuple(sample.row for _, sample, _ in chosen),
        tuple(number for number, _, _ in chosen),
    )


class Writer:
    """A model that writes answers, loaded from a folder: safetensors only, nothing fetched, no code of the folder run.

    Args:
        folder: a checkpoint.
        tokenizer: turns ids into text; its end token, and those of the folder's configurations, end an answer.
        longest: most tokens of an answer; fewer where the model's context ends before.
        stop: texts that end an answer too; they, and what follows, are cut off.
        compute: "float32", or "stored" for arithmetic in the checkpoint's own type.

    Raises:
        InputError: the folder cannot be loaded, or lacks tensors of the model.
    """

    def __init__(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerFast,
        *,
        longest: int = 200,
        stop: Sequence[str] = (),
        compute: Compute = "float32",
    ) -> None:
        self._model = loaded(folder, compute)
        self._tokenizer = tokenizer
        self._special = frozenset(tokenizer.all_special_ids)
        self._longest = longest
        self._stop = tuple(stop)
        self._own = own = self._model.generation_config
        self._end = sorted({*_as_list(own.eos_token_id), *_as_list(tokenizer.eos_token_id)})
        padding = next((i for i in (own.pad_token_id, tokenizer.pad_token_id, *self._end) if i is not None), 0)
        self._common = {"eos_token_id": self._end or None, "pad_token_id": padding, "use_cache": True}

    def greedy(self, asked: Asked, *, stage: str = "answering", progress: Progress = silent) -> list[str]:
        """The answer that greedy decoding gives to each question. Questions of one length are answered together."""
        from vecsurgery.forward.batches import make_batches

        answers = [""] * len(asked.prompts)
        done = 0
        for batch in make_batches(asked.prompts):
            for start in range(0, len(batch.members), WRITTEN_TOGETHER):
                members = batch.members[start : start + WRITTEN_TOGETHER]
                texts = self._write(batch.ids[start : start + WRITTEN_TOGETHER], do_sample=False)
                for member, text in zip(members, texts, strict=True):
                    answers[member] = text
                done += len(members)
                progress(stage, done, len(asked.prompts), "questions")
        return answers

    def sampled(
        self, asked: Asked, sampling: Sampling, *, stage: str = "sampling", progress: Progress = silent
    ) -> list[list[str]]:
        """`sampling.count` drawn answers to each question.

        The draws of a row follow from the seed and the row's content alone, not from what else is asked. torch's
        global random state is left as it was.
        """
        import torch

        drawn = []
        options = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        for number, (prompt, row) in enumerate(zip(asked.prompts, asked.ids, strict=True)):
            texts: list[str] = []
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_seed(sampling.seed, row))
                while len(texts) < sampling.count:
                    together = min(WRITTEN_TOGETHER, sampling.count - len(texts))
                    texts += self._write(torch.tensor([list(prompt)] * together), **options)
            drawn.append(texts)
            progress(stage, number + 1, len(asked.prompts), "questions")
        return drawn

    @property
    def draws(self) -> bool:
        """Whether the model's generation_config.json asks for sampling; else all its texts behind a prompt are one."""
        return bool(self._own.do_sample)

    def own(
        self,
        prompts: Sequence[Sequence[int]],
        rows: Sequence[str],
        *,
        count: int = 1,
        seed: int = 0,
        keep: Sequence[str] = (),
        stage: str = "writing",
        progress: Progress = silent,
    ) -> list[list[Written]]:
        """What the model writes behind each prompt by its own generation_config.json: temperature, top_p, top_k,
        penalties and whether to draw at all are as it says, or transformers' defaults; length and seed are ours.

        Args:
            prompts: token ids.
            rows: identity of each; with the seed, it decides the draws.
            count: texts behind each prompt; one where the model does not draw (see `draws`).
            keep: special tokens that stay in the texts, such as tags.
        """
        import torch

        drawn = []
        for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            written: list[Written] = []
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_seed(seed, row))
                while len(written) < (count if self.draws else 1):
                    together = min(WRITTEN_TOGETHER, count - len(written)) if self.draws else 1
                    ids = torch.tensor([list(prompt)] * together)
                    found = self._continued(ids, self._own_config(len(prompt)))
                    written += [self._written(own, keep) for own in found]
            drawn.append(written)
            progress(stage, number + 1, len(prompts), "questions")
        return drawn

    def text(self, ids: Sequence[int], keep: Sequence[str] = ()) -> str:
        """The text of ids without special tokens, but for those in `keep`."""
        left_out = self._special - {self._tokenizer.get_vocab().get(tag) for tag in keep}
        return str(self._tokenizer.decode([token for token in ids if token not in left_out]))

    def _own_config(self, length: int) -> Any:
        config = copy.deepcopy(self._own)
        ours: dict[str, Any] = {
            "max_new_tokens": self._room(length),
            "max_length": None,
            "max_time": None,
            "stop_strings": None,
        }
        ours |= {"num_return_sequences": 1, "return_dict_in_generate": False, **self._common}
        for name, value in ours.items():
            setattr(config, name, value)
        return config

    def _written(self, ids: list[int], keep: Sequence[str]) -> Written:
        end = self._stop_place(ids)
        return Written(tuple(ids[:end]), self.text(ids[:end], keep), end < len(ids))

    def _write(self, ids: Tensor, **options: Any) -> list[str]:
        """Answers to prompts (batch, length) of one length: no padding, so that no mask can go wrong."""
        from transformers import GenerationConfig

        config = GenerationConfig(max_new_tokens=self._room(ids.shape[1]), **self._common, **options)
        return [self._text(row) for row in self._continued(ids, config)]

    def _continued(self, ids: Tensor, config: Any) -> list[list[int]]:
        """The new ids behind prompts (batch, length), with whatever stands behind an end token."""
        import torch

        # Otherwise what a model's generation_config.json says fills in what is not set here.
        self._model.generation_config = config
        try:
            with torch.no_grad():
                written = self._model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        except RuntimeError as error:
            if _NOT_FINITE not in str(error):
                raise
            raise NotFiniteError(
                "generating answers: the model's logits are not finite (NaN or infinity); look for broken weights with "
                "`vecsurgery check --weights`"
            ) from error
        found: list[list[int]] = written[:, ids.shape[1] :].tolist()
        return found

    def _room(self, length: int) -> int:
        context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        room = self._longest if context is None else min(self._longest, context - length)
        if room < 1:
            raise InputError(
                f"generating answers: a question of {length} tokens fills the model's context of {context}; leave out "
                "long rows (`rows`), or lower `max_length`"
            )
        return room

    def _stop_place(self, ids: Sequence[int]) -> int:
        """Where an end token stands; the end where there is none."""
        return next((place for place, token in enumerate(ids) if token in self._end), len(ids))

    def _text(self, ids: list[int]) -> str:
        text = str(self._tokenizer.decode(ids[: self._stop_place(ids)], skip_special_tokens=True))
        for stop in self._stop:
            text = text.partition(stop)[0]
        return text.strip()


def rouge_figure(asked: Asked, answers: Sequence[str]) -> Figure:
    """ROUGE-L recall of greedy answers, with the texts."""
    scores = rouge_recall(answers, asked.expected)
    entries = {
        index: {"rougeL_recall": score, "ground_truth": truth, "generation": answer}
        for index, score, truth, answer in zip(asked.index, scores, asked.expected, answers, strict=True)
    }
    return Figure(math.fsum(scores) / len(scores), entries, "rougeL_recall")


def leak_figures(asked: Asked, drawn: Sequence[Sequence[str]], ks: Sequence[int]) -> dict[str, Figure]:
    """leak@k for each k, on ROUGE-L recall of the drawn answers; each row keeps the scores of its answers."""
    scored = [rouge_recall(texts, [truth] * len(texts)) for texts, truth in zip(drawn, asked.expected, strict=True)]
    found = {}
    for k in ks:
        entries = {
            index: {"score": leak_at_k(scores, k), "samples": scores}
            for index, scores in zip(asked.index, scored, strict=True)
        }
        value = math.fsum(float(str(entry["score"])) for entry in entries.values()) / len(entries)
        found[f"leak@{k}"] = Figure(value, entries)
    return found


def loaded(folder: Path, compute: Compute) -> Any:
    """The whole model of a checkpoint folder: safetensors only, nothing fetched, no code of the folder run.

    Raises InputError where it cannot be loaded or lacks tensors.
    """
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with _quiet():
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32 if compute == "float32" else "auto",
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"loading {folder} to generate answers: {error}; expected a complete checkpoint in safetensors"
        ) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise InputError(f"loading {folder} to generate answers: it lacks tensors of the model ({missing} …)")
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars that loading draws by itself."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _seed(seed: int, row: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {row}".encode()).digest()[:8], "big") >> 1


def _as_list(ids: int | list[int] | None) -> list[int]:
    if ids is None:
        return []
    return [ids] if isinstance(ids, int) else list(ids)
