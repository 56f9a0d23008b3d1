"""The recipe: what the user asked for, loaded and checked, with all errors at once and their line numbers.

Lives here: the grammar, loading, `extends` and overrides, model references, numbers over blocks, the canonical text,
the editor schema, and the recipes that are shipped. May not: import another room, torch, transformers or mergekit, or
open any file but recipes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
