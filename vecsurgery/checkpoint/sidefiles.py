"""What a checkpoint folder holds beside weights: copied byte for byte, never rewritten, or left out with a reason."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from vecsurgery.checkpoint import atomic
from vecsurgery.checkpoint.disk import write_errors
from vecsurgery.checkpoint.hashes import file_sha256
from vecsurgery.checkpoint.writer import WrittenFile
from vecsurgery.errors import InputError

Dtype = Literal["stored", "float32", "bfloat16", "float16"]

_FOLDERS = ("additional_chat_templates",)
"""Sub-folders that belong to a tokenizer."""
_LEFT_OUT = (
    ("config.json", "written last, from its own rules"),
    ("*.index.json", "index of the source's weights"),
    *((f"*.{ending}", "weights of the source") for ending in ("safetensors", "bin", "pth", "pt", "gguf", "h5", "onnx")),
    *((f"*.{ending}", "weights of the source") for ending in ("msgpack", "ckpt", "ot", "npz", "mlmodel", "tflite")),
    ("readme*", "the output has a card of its own"),
    (".*", "hidden file"),
    ("*.part", "half-written file"),
    ("adapter_*", "adapter of the source"),
    ("optimizer*", "training state"),
    ("scheduler*", "training state"),
    ("trainer_state.json", "training state"),
    ("training_args*", "training state"),
    ("rng_state*", "training state"),
    ("*.py", "program code is never copied"),
    ("*.pkl", "pickles are never copied"),
    ("*.pickle", "pickles are never copied"),
    ("surgery.json", "record of an earlier surgery"),
    ("recipe.yaml", "record of an earlier surgery"),
    ("report.html", "record of an earlier surgery"),
)
"""Patterns of lower-case file names with the reason; the first that matches counts, what none matches is copied."""
_DTYPE_KEYS = ("torch_dtype", "dtype")
_DTYPE_ENTRY = re.compile(rf'("(?:{"|".join(_DTYPE_KEYS)})"\s*:\s*)(?:"[^"]*"|null)')


@dataclass(frozen=True)
class SideFiles:
    """Files of a checkpoint folder that are no weights, by name relative to it."""

    copied: tuple[str, ...]
    left_out: Mapping[str, str]
    """Name → reason. Sub-folders end with a slash."""


def plan_side_files(folder: Path) -> SideFiles:
    """Sort the entries of a checkpoint folder: tokenizer, chat templates, generation config, licence and all else that
    is not named in the list of exceptions are copied; weights, cards, training state and program code are left out.
    """
    copied: list[str] = []
    left_out: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            if path.name in _FOLDERS:
                copied += sorted(f"{path.name}/{file.name}" for file in path.iterdir() if file.is_file())
            else:
                left_out[path.name + "/"] = "sub-folder"
            continue
        reason = _reason(path.name)
        if reason is None:
            copied.append(path.name)
        else:
            left_out[path.name] = reason
    return SideFiles(tuple(copied), left_out)


def copy_side_files(folder: Path, destination: Path, names: tuple[str, ...]) -> dict[str, WrittenFile]:
    """Copy the named files byte for byte (links are followed) and return size and SHA-256 of each copy.

    Errors: InputError where a file cannot be read, RunError where the disk is full.
    """
    written = {}
    for name in names:
        source, target = folder / name, destination / name
        if not source.is_file():
            raise InputError(f"copying side files: {source} cannot be read (missing, or a link to nothing); restore it")
        with write_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            part = atomic.part_of(target)
            shutil.copyfile(source, part)
            part.replace(target)
        written[name] = WrittenFile(name, target.stat().st_size, file_sha256(target))
    return written


def config_bytes(folder: Path, dtype: Dtype = "stored") -> bytes:
    """config.json of the output: the source's bytes; with another `dtype`, those bytes with only the type keys changed.

    The keys are `torch_dtype` and `dtype`, at the top and in nested configurations, null included; where there is none,
    `torch_dtype` is added, which every release reads. Errors: InputError where config.json is missing or is no object.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"reading {path}: there is no such file; expected a checkpoint folder with a config.json")
    data = path.read_bytes()
    return data if dtype == "stored" else _with_dtype(data, dtype, path)


def _reason(name: str) -> str | None:
    lower = name.lower()
    return next((reason for pattern, reason in _LEFT_OUT if fnmatchcase(lower, pattern)), None)


def _with_dtype(data: bytes, dtype: str, path: Path) -> bytes:
    try:
        text = data.decode("utf-8")
        config = json.loads(text)
    except ValueError as error:
        raise InputError(f"reading {path}: it is no JSON text in UTF-8 ({error}); repair it") from error
    if not isinstance(config, dict):
        raise InputError(f"reading {path}: it holds a {type(config).__name__}, expected a JSON object")
    wanted = _replaced(config, dtype)
    if not any(key in wanted for key in _DTYPE_KEYS):
        wanted["torch_dtype"] = dtype
    edited = _DTYPE_ENTRY.sub(rf'\g<1>"{dtype}"', text)
    # Editing the text keeps its formatting; where that does not give the wanted object, the object is written anew.
    if json.loads(edited) != wanted:
        edited = json.dumps(wanted, indent=2, ensure_ascii=False) + "\n"
    return edited.encode()


def _replaced(value: Any, dtype: str) -> Any:
    if isinstance(value, dict):
        return {
            key: dtype if key in _DTYPE_KEYS and (entry is None or isinstance(entry, str)) else _replaced(entry, dtype)
            for key, entry in value.items()
        }
    if isinstance(value, list):
        return [_replaced(entry, dtype) for entry in value]
    return value
