"""Deltas that are one and the same: named twice, or copies of each other."""

from itertools import combinations

from vecsurgery.planning.inputs import Inputs


def alike(inputs: Inputs) -> list[str]:
    """A warning about every two deltas whose fingerprints are equal."""
    prints = {name: source.fingerprint for name, source in inputs.deltas.items()}
    return [
        f"deltas.{first} and deltas.{second} are the same change (their fingerprints are equal), so that it counts "
        "twice; name it once, and give it the weight that it shall have"
        for first, second in combinations(prints, 2)
        if prints[first] == prints[second]
    ]
