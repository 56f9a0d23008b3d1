"""Measures of a model's behaviour: how well it answers.

Lives here: measures over any `Weights`, by the same streaming passes as everything else; measures of what a loaded
model writes; their names, formulas and files. May not: change a weight, or know of recipes and steps.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
