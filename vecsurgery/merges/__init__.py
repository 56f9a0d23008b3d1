"""Merges: what a recipe's `merge` can make of several deltas of one tensor; one file a method, and one for mergekit's.

Lives here: for each method its options, a pure function (deltas, weights, options, tensor) → one delta, and one `MERGE`
object. A new file with such an object is found by itself (`vecsurgery.methods`); other distributions add theirs through
the entry-point group `vecsurgery.steps`. May not: read a checkpoint, measure anything, or import rooms other than
linalg, recipe (for its numbers) and delta.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
