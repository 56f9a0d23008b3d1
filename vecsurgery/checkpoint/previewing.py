"""A folder in the making, read as a checkpoint before it has its name."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vecsurgery.checkpoint.partial import CONFIG_FILE, Partial
from vecsurgery.checkpoint.stored import Stored

_GENERATION_FILE = "generation_config.json"
_INDEX_FILE = "model.safetensors.index.json"


@contextmanager
def preview(partial: Partial, config: bytes, index: str | None, source: Path | None = None) -> Iterator[Stored]:
    """The weights that a partial folder holds, all of whose shards are written.

    `config`: the bytes of config.json, which the folder gets last; `index`: the text of the index, None for one file.
    `source`: a folder whose generation_config.json, where it has one, the result will have.
    No weights are copied: links to the shards stand in a temporary folder while it is open.
    """
    with tempfile.TemporaryDirectory(prefix="vecsurgery-") as place:
        folder = Path(place)
        for shard in partial.path.glob("*.safetensors"):
            (folder / shard.name).symlink_to(shard.resolve())
        (folder / CONFIG_FILE).write_bytes(config)
        if source is not None and (source / _GENERATION_FILE).is_file():
            (folder / _GENERATION_FILE).symlink_to((source / _GENERATION_FILE).resolve())
        if index is not None:
            (folder / _INDEX_FILE).write_text(index, encoding="utf-8")
        yield Stored(folder)
