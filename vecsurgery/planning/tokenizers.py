"""Tokenizers of the open checkpoints, each loaded once."""

from pathlib import Path
from typing import TYPE_CHECKING

from vecsurgery.calibration import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class Tokenizers:
    """The tokenizer of a folder, loaded when it is first asked for."""

    def __init__(self) -> None:
        self._loaded: dict[Path, PreTrainedTokenizerFast] = {}

    def __getitem__(self, folder: Path) -> "PreTrainedTokenizerFast":
        """Raises what `load_tokenizer` raises."""
        if folder not in self._loaded:
            self._loaded[folder] = load_tokenizer(folder)
        return self._loaded[folder]
