"""Editing: what each step does with each tensor, and the edited weights, computed for one tensor at a time.

Lives here: which steps touch a tensor, `Edited` and its variants, reading each tensor once, figures of a stored matrix.
May not: open what a recipe names (planning), ask a model anything or write files (surgery).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
