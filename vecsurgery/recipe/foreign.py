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
    return (
        f"this is a mergekit configuration (keys {found}), not a recipe: {_way_on(root)}. To edit what training "
        f"changed before it is added, name the models in a recipe: into: {into}, deltas: {{NAME: {{tuned: MODEL}}}}, "
        "then steps (`vecsurgery new` lists examples to start from)"
    )


def _way_on(root: Node) -> str:
    """What runs it, and how its method is written in a recipe."""
    if root.child("experts") is not None:
        return "run it with mergekit-moe"
    runs = "vecsurgery-mergekit runs it as it is"
    method = root.child("merge_method")
    name = method.value if method is not None and isinstance(method.value, str) else "NAME"
    if root.child("slices") is not None or name == "vecsurgery_scale":  # no step does that
        return runs
    if name.startswith("vecsurgery_"):
        return f"{runs}, and in a recipe its method is a step, `project: {name.removeprefix('vecsurgery_')}`"
    return f"{runs}, and in a recipe a method of mergekit is a step, `merge: {name}` with `as: NEW_NAME`"
