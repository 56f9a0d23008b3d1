"""A family's models for one seed: base, reasoning and instruction model, with the rows that they are asked."""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vecsurgery.demo.folders import cache_folder, key_of, made_once, save
from vecsurgery.demo.reasoning.family import Family, instructed_rows, plain_rows, spanned_rows, write_rows
from vecsurgery.demo.reasoning.settings import Settings
from vecsurgery.demo.shape import llama
from vecsurgery.demo.tokens import END, SPECIAL_TOKENS, Encoded, byte_level, encode_answered
from vecsurgery.progress import Progress, silent

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

_SOURCES = tuple(Path(__file__).with_name(f"{name}.py") for name in ("formats", "family", "models"))
_GENERATION = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "max_new_tokens": 64}
"""What reasoning models of this kind ask for themselves."""


@dataclass(frozen=True)
class Trained:
    """Folders of one seed: three checkpoints, and the rows.

    `data` holds calibration.jsonl (plain, with thoughts), instructions.jsonl (with instructions and spans), and plain-
    and instructed- files of `choosing` and `test`.
    """

    seed: int
    family: str
    base: Path
    reasoning: Path
    instruct: Path
    data: Path


def train_family(
    make_family: Callable[[int], Family],
    seed: int,
    settings: Settings | None = None,
    *,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Trained:
    """The three models of a family and seed; trained on the first call, then found in the cache.

    Same arguments on the same machine: same bytes.
    """
    settings = settings or Settings()
    family = make_family(seed)

    def make(folder: Path) -> None:
        _make(_at(folder, seed, family.name), family, settings, progress)

    key = key_of(asdict(settings) | {"family": asdict(family)}, _SOURCES)
    return _at(made_once(cache or cache_folder(), f"demo-{family.name}", key, seed, make), seed, family.name)


def _at(folder: Path, seed: int, name: str) -> Trained:
    return Trained(seed, name, folder / "base", folder / "reasoning", folder / "instruct", folder / "data")


def _make(trained: Trained, family: Family, settings: Settings, progress: Progress) -> None:
    """Trains and writes the three folders, and the rows."""
    from vecsurgery.demo.training import reproducible, train

    write_data(family, trained.data)
    tokenizer = make_tokenizer(family, settings.vocabulary)
    config = CONFIGURATIONS[family.architecture](settings, tokenizer.get_vocab_size())

    def course(model: "PreTrainedModel", name: str, rows: list[Encoded], folder: Path) -> None:
        stage = f"training the {name} model"
        train(model, rows, getattr(settings, name), seed=trained.seed, stage=stage, progress=progress)
        model.half().float()  # what is tuned from it is tuned from what was published
        template = family.template(thinks=name == "reasoning")
        save(folder, model, tokenizer, config, generation=_GENERATION, template=template, dtype="float16")

    with reproducible(settings.threads):
        base = _new_model(config, trained.seed)
        turns = _turns(tokenizer, family.base_rows(trained.seed, settings.times))
        course(base, "base", [_whole(tokenizer, text) for text in family.base_texts()] + turns, trained.base)
        tuned = copy.deepcopy(base)
        rows = family.reasoning_rows(trained.seed, settings.times)
        course(tuned, "reasoning", _turns(tokenizer, rows), trained.reasoning)
        rows = family.instruction_rows(trained.seed, settings.times)
        course(base, "instruct", _turns(tokenizer, rows), trained.instruct)


def _whole(tokenizer: "Tokenizer", text: str) -> Encoded:
    return Encoded((*tokenizer.encode(text).ids, SPECIAL_TOKENS.index(END)), ())


def _turns(tokenizer: "Tokenizer", rows: list[tuple[str, str]]) -> list[Encoded]:
    return [encode_answered(tokenizer, prompt, answer) for prompt, answer in rows]


def make_tokenizer(family: Family, vocabulary: int) -> "Tokenizer":
    """The tokenizer that a family's members share."""
    rows = [*family.reasoning_rows(0, 1), *family.instruction_rows(0, 1)]
    texts = [*family.base_texts(), *(prompt + answer for prompt, answer in rows)]
    return byte_level(texts, vocabulary, more=family.tokens)


def write_data(family: Family, folder: Path) -> None:
    """Write the rows of calibration and evaluation into a new folder."""
    folder.mkdir(parents=True)
    problems = family.problems
    half = len(problems.calibration) // 2
    write_rows(folder / "calibration.jsonl", plain_rows(problems.calibration[:half]))
    write_rows(folder / "instructions.jsonl", spanned_rows(problems.calibration[half:]))
    for name, part in (("choosing", problems.choosing), ("test", problems.test)):
        middle = len(part) // 2
        write_rows(folder / f"{name}-plain.jsonl", plain_rows(part[:middle]))
        write_rows(folder / f"{name}-instructed.jsonl", instructed_rows(family, part[middle:]))


def _new_model(config: dict[str, Any], seed: int) -> "PreTrainedModel":
    """The untrained model of a seed; torch's own random state is left as it was."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
        return model.float()


def _llama(settings: Settings, vocabulary: int) -> dict[str, Any]:
    return llama(settings, vocabulary, "float16")


def _qwen2(settings: Settings, vocabulary: int) -> dict[str, Any]:
    """The text of config.json: a tiny Qwen2, which has biases on q, k and v."""
    kept = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    kept += ["num_key_value_heads", "max_position_embeddings", "hidden_act", "tie_word_embeddings", "torch_dtype"]
    kept += ["bos_token_id", "eos_token_id", "pad_token_id"]
    shared = _llama(settings, vocabulary)
    own = {"rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "use_sliding_window": False}
    return {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **{key: shared[key] for key in kept}, **own}


CONFIGURATIONS: dict[str, Callable[[Settings, int], dict[str, Any]]] = {"llama": _llama, "qwen2": _qwen2}
