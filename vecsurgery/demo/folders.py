"""Model folders of the demos: written as transformers loads them, made once, then found in the cache."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vecsurgery.demo.tokens import BEGIN, END, PAD, SPECIAL_TOKENS
from vecsurgery.errors import InputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

SHARED = tuple(Path(__file__).with_name(name) for name in ("folders.py", "shape.py", "tokens.py", "training.py"))
"""Sources on which the bytes of every entry depend."""
_FILES = "files.json"


def cache_folder() -> Path:
    """`$VECSURGERY_CACHE`, else `vecsurgery` in the user's cache directory."""
    chosen = os.environ.get("VECSURGERY_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vecsurgery"


def made_once(cache: Path, name: str, key: str, seed: int, make: Callable[[Path], None]) -> Path:
    """The folder of one seed in the cache; where there is none, `make` fills a new one, which appears when complete.

    `name` and `key` (see `key_of`) tell entries apart. Raises InputError where the cache cannot be written, or lost
    files of the entry.
    """
    folder = cache / f"{name}-{key}" / f"seed-{seed}"
    if folder.exists():
        _require_whole(folder)
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"seed-{seed}.", suffix=".partial", dir=folder.parent))
    except OSError as error:
        raise InputError(
            f"making the demo's models in {folder.parent}: {error.strerror or error}; set VECSURGERY_CACHE to a folder "
            "that can be written"
        ) from error
    try:
        make(unfinished)
        (unfinished / _FILES).write_text(json.dumps(_sizes(unfinished), indent=1) + "\n", encoding="utf-8")
        _publish(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _require_whole(folder: Path) -> None:
    """Raises InputError where an entry is not as it was made, as cleaners of caches leave it."""
    listed = folder / _FILES
    wanted = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else None
    if wanted is None or wanted != _sizes(folder):
        raise InputError(f"taking the demo's models from {folder}: files are missing or changed; delete this folder")


def _sizes(folder: Path) -> dict[str, int]:
    """Every file under a folder but the list itself, with its size in bytes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / _FILES)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def key_of(settings: Mapping[str, Any], sources: Sequence[Path]) -> str:
    """Hash of all that decides the bytes of an entry: settings, code, and the versions of the libraries."""
    import tokenizers
    import torch
    import transformers

    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in (*SHARED, *sources):
        key.update(path.read_bytes())
    key.update(f"{torch.__version__} {transformers.__version__} {tokenizers.__version__}".encode())
    return key.hexdigest()[:16]


def _publish(unfinished: Path, folder: Path) -> None:
    """Renames; where another process was first, its entry (the same bytes) is kept."""
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.exists():
            raise


def save(
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: "Tokenizer",
    config: Mapping[str, Any],
    *,
    generation: Mapping[str, Any],
    template: str | None = None,
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Write an ordinary model folder: config, generation config, tokenizer with its chat template, weights.

    Written file by file because `save_pretrained` renames RoPE keys and the tokenizer's class to names that other
    programs cannot read. The head is tied to the embedding and therefore not stored.
    """
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    ids = {
        f"{name}_token_id": SPECIAL_TOKENS.index(token) for name, token in (("bos", BEGIN), ("eos", END), ("pad", PAD))
    }
    tokens = {"bos_token": BEGIN, "eos_token": END, "pad_token": PAD}
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", {**generation, **ids})
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": config["max_position_embeddings"],
            **tokens,
            **({"chat_template": template} if template is not None else {}),
        },
    )
    _write_json(folder / "special_tokens_map.json", tokens)
    tokenizer.save(str(folder / "tokenizer.json"))
    stored = getattr(torch, dtype)
    weights = {
        name: weight.detach().to(stored) for name, weight in model.named_parameters() if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
