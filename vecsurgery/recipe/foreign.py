"""Configurations of mergekit that are given as a recipe: told as what they are, with the way on."""

from .tree import Node

_SIGNS = ({"merge_method"}, {"slices"}, {"models", "base_model"}, {"experts", "base_model"})
"""Sets of keys that a mergekit configuration has and a recipe cannot have."""
_KEYS = ("merge_method", "models", "slices", "experts", "base_model", "parameters", "dtype", "tokenizer")


def mergekit(root: Node) -> str | None:
    """What to say of a map that is a mergekit configuration; None for any other."""
    keys = set(root.children())
    if "into" in keys or not any(sign <= keys for sign in _SIGNS):
        return None
    found = ", ".join(key for key in _KEYS if key in keys)
    base = root.child("base_model")
    into = base.value if base is not None and isinstance(base.value, str) else "BASE"
    method = root.child("merge_method")
    ours = method is not None and str(method.value).startswith("vecsurgery_")
    return (
        f"this is a mergekit configuration (keys {found}), not a recipe: run it with "
        f"{'vecsurgery-mergekit' if ours else 'mergekit-yaml'}. To edit what "
        f"training changed before it is added, name the models in a recipe: into: {into}, deltas: {{NAME: {{tuned: "
        "MODEL}}, then steps (`vecsurgery new` lists examples to start from)"
    )
