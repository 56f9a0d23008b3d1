"""vecsurgery: edit the difference between two checkpoints under a constraint measured from activations.

The Python calls are those of `vecsurgery.surgery` (edit, write, run, plan, check, measure, union, reproduce) and of
`vecsurgery.studies` (evaluate, curve, compare, inspect).
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
