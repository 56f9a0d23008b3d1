"""Fits: what a recipe's `fit` can find out about the edited model and turn into coefficients; one file a method.

Lives here: for each method its options, a function that asks about candidate models and returns coefficients,
and one `FIT` object. A new file with such an object is found by itself (`vecsurgery.methods`). May not: read a
checkpoint, run a model (it asks and is answered), or import rooms other than linalg and delta.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
