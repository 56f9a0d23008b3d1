"""Projectors: what a recipe's `project` can do to the deltas of one matrix; one file a method.

Lives here: for each method its options, a pure function (deltas, geometry, options) → Edit and one `PROJECTOR` object.
A new file with such an object is found by itself (`vecsurgery.methods`); other distributions add theirs through the
entry-point group `vecsurgery.steps`. May not: read a checkpoint, measure anything, or import rooms other than linalg
and delta.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
