"""Seeds of steps that draw by chance: what the user wrote becomes a number for each tensor and delta.

From names alone, never from values: the last bit of a value may depend on the number of threads.
"""

import hashlib
from collections.abc import Sequence

from pydantic import BaseModel

from vecsurgery.recipe.types import Step

_BYTES = 6
"""48 bits: every number is exact in JSON too."""


def with_own_seeds(step: Step, deltas: Sequence[str], parameter: str) -> BaseModel | None:
    """The step's options with their seeds replaced by those of these deltas of one tensor.

    Seeds are the fields marked `json_schema_extra={"seed": True}`. The new number is a hash of the old one, the step's
    id, the deltas' names and the parameter: two steps, deltas or tensors share no mask, two runs share all.
    """
    if step.options is None:
        return None
    own = {
        key: _number(str(getattr(step.options, key)), step.id, *deltas, parameter)
        for key, field in type(step.options).model_fields.items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("seed") is True
    }
    return step.options.model_copy(update=own) if own else step.options


def _number(*parts: str) -> int:
    digest = hashlib.sha256("\n".join(parts).encode()).digest()
    return int.from_bytes(digest[:_BYTES], "big")
