"""Forward passes over any Weights, streamed block by block.

Lives here: batches, loading of a module's parameters, replay of blocks, losses. May not: keep statistics, know of
geometry, deltas or recipes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
