"""The demo's files for one seed: world, original and unlearned checkpoint; made once, then taken from the cache."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vecsurgery.demo.settings import Settings
from vecsurgery.demo.world import World, make_world
from vecsurgery.progress import Progress, silent

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

_SOURCES = ("settings.py", "words.py", "world.py", "tokenizer.py", "train.py", "cache.py")


@dataclass(frozen=True)
class Prepared:
    """Folders of one seed: two checkpoints as transformers loads them, and the world's data files."""

    seed: int
    original: Path
    unlearned: Path
    data: Path


def cache_folder() -> Path:
    """`$VECSURGERY_CACHE`, else `vecsurgery` in the user's cache directory."""
    chosen = os.environ.get("VECSURGERY_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vecsurgery"


def prepare(
    seed: int, settings: Settings | None = None, *, cache: Path | None = None, progress: Progress = silent
) -> Prepared:
    """World, original and unlearned model of `seed`; trained on the first call, then found in the cache.

    `cache`: folder of the cache, by default `cache_folder()`. The entry is named by a hash of the settings, of this
    room's code and of the libraries' versions, and appears only when it is complete. Same arguments on the same
    machine: same bytes.
    """
    settings = settings or Settings()
    folder = (cache or cache_folder()) / f"demo-{_key(settings)}" / f"seed-{seed}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"seed-{seed}.", suffix=".partial", dir=folder.parent))
        try:
            _make(_at(unfinished, seed), settings, progress)
            _publish(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return _at(folder, seed)


def _at(folder: Path, seed: int) -> Prepared:
    return Prepared(seed, folder / "original", folder / "unlearned", folder / "data")


def _publish(unfinished: Path, folder: Path) -> None:
    """Renames; where another process was first, its entry (the same bytes) is kept."""
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.exists():
            raise


def _key(settings: Settings) -> str:
    """Hash of all that decides the bytes of an entry."""
    import tokenizers
    import torch
    import transformers

    key = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    for name in _SOURCES:
        key.update(Path(__file__).with_name(name).read_bytes())
    key.update(f"{torch.__version__} {transformers.__version__} {tokenizers.__version__}".encode())
    return key.hexdigest()[:16]


def _make(prepared: Prepared, settings: Settings, progress: Progress) -> None:
    """Writes the three folders."""
    from vecsurgery.demo.tokenizer import encode_questions, encode_sentences, make_tokenizer
    from vecsurgery.demo.train import new_model, reproducible, train_original, unlearn

    world: World = make_world(prepared.seed, settings)
    world.write(prepared.data)
    tokenizer = make_tokenizer(world, settings.vocabulary)
    sentences = encode_sentences(tokenizer, [*world.general, *world.general_test])
    with reproducible(settings.threads):
        model = new_model(settings, tokenizer.get_vocab_size(), prepared.seed)
        rows = encode_questions(tokenizer, world.full) + sentences
        train_original(model, rows, settings, seed=prepared.seed, progress=progress)
        save(prepared.original, model, tokenizer, settings)
        unlearn(model, encode_questions(tokenizer, world.forget), settings, seed=prepared.seed, progress=progress)
        save(prepared.unlearned, model, tokenizer, settings)


def save(folder: Path, model: "LlamaForCausalLM", tokenizer: "Tokenizer", settings: Settings) -> None:
    """Writes an ordinary model folder: config, generation config, tokenizer, float32 weights.

    Written file by file because `save_pretrained` renames RoPE keys and the tokenizer's class to names that other
    programs cannot read. The head is tied to the embedding and therefore not stored.
    """
    from safetensors.torch import save_file

    from vecsurgery.demo.tokenizer import BEGIN, END, PAD, SPECIAL_TOKENS
    from vecsurgery.demo.train import configuration

    folder.mkdir(parents=True)
    config = configuration(settings, tokenizer.get_vocab_size())
    ids = {
        f"{name}_token_id": SPECIAL_TOKENS.index(token) for name, token in (("bos", BEGIN), ("eos", END), ("pad", PAD))
    }
    tokens = {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD}
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {"do_sample": False, "max_new_tokens": 16, **ids})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": settings.context,
            **tokens,
        },
    )
    _write_json(folder / "special_tokens_map.json", tokens)
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = {name: weight.detach() for name, weight in model.named_parameters() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
