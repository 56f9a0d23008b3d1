"""Tokenizers: loaded without running anybody's code, and checked against their own file."""

from pathlib import Path
from typing import TYPE_CHECKING

from vecsurgery.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_PROBES = (
    "The quick brown fox, jumping over 12345 lazy dogs; isn't it?",
    "  two  spaces   three\tand\ta tab ",
    "first line\nsecond line\n\nafter a blank line\r\n",
    "naïve café — “quoted” … € 日本語 العربية 🙂",
    "def f(x):\n    return x[0] != {'a': 1.5e-3}  # comment",
    "<think>\nreasoning\n</think>\n\nanswer",
)
_VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.tiktoken")
# What transformers raises for damaged files; the tokenizers library raises Exception itself, and nothing narrower.
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, ImportError)


def has_tokenizer(folder: Path) -> bool:
    """Whether a checkpoint folder holds the files of a tokenizer."""
    return any(any(folder.glob(pattern)) for pattern in _VOCABULARY_FILES)


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a checkpoint folder, offline and without running code that the folder brings.

    Raises InputError where the folder has none or it cannot be read, UnsupportedError where it does not tell which
    characters a token stands for (token rules need these offsets).
    """
    from transformers import AutoTokenizer

    if not has_tokenizer(folder):
        raise InputError(
            f"loading the tokenizer of {folder}: found none of {', '.join(_VOCABULARY_FILES)}; "
            "copy the tokenizer files of the model into the folder"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:
        if not isinstance(error, _UNREADABLE) and type(error) is not Exception:
            raise
        raise InputError(
            f"loading the tokenizer of {folder}: its files cannot be read ({type(error).__name__}: {error}); "
            "copy them again from the model"
        ) from error
    if not tokenizer.is_fast:
        raise UnsupportedError(
            f"loading the tokenizer of {folder}: {type(tokenizer).__name__} gives no character offsets, which token "
            "rules need; give the folder a tokenizer.json"
        )
    return tokenizer


def sanity(folder: Path, tokenizer: "PreTrainedTokenizerFast") -> tuple[str, ...]:
    """Compare the ids of a loaded tokenizer with those of the folder's raw `tokenizer.json` on probe texts.

    Several releases of transformers load some byte-level tokenizers wrongly (spaces vanish), and every number measured
    through such a tokenizer is wrong. Returns warnings (there is no `tokenizer.json` to compare with).
    Raises InputError with the text and both sequences of ids where they differ.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        return (f"{folder} has no tokenizer.json: the tokenizer could not be checked against its file",)
    raw = Tokenizer.from_file(str(path))
    raw.no_padding()
    raw.no_truncation()
    special = [token.content for token in raw.get_added_tokens_decoder().values()]
    probes = (*_PROBES, *(f"before{token} after {token}" for token in special[:64]))
    for probe in probes:
        expected = raw.encode(probe, add_special_tokens=False).ids
        came = tokenizer(probe, add_special_tokens=False)["input_ids"]
        if came != expected:
            raise InputError(
                f"checking the tokenizer of {folder}: {probe!r} became {came}, but its tokenizer.json says {expected}; "
                "this release of transformers loads it wrongly: install another one, or correct tokenizer_config.json"
            )
    return ()
