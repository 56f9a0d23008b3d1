"""An index that forgets a tensor does not make it vanish."""

import json
from pathlib import Path

from support import models

from vecsurgery.checkpoint import Stored

FORGOTTEN = "model.layers.1.mlp.up_proj.weight"


def test_a_tensor_that_a_shard_holds_and_the_index_forgets_is_read(tmp_path: Path) -> None:
    folder = models.checkpoint(tmp_path / "sharded", seed=1, shard_size="40KB")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"][FORGOTTEN]
    index.write_text(json.dumps(content))
    assert FORGOTTEN in Stored(folder).layout.tensors
