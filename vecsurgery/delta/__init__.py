"""Deltas: tuned − base, dense or factored, their arithmetic, and where they come from.

Lives here: the two delta types, and sources that read a delta from two checkpoints or from an adapter.
May not: know what a projector does to them, or write files.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
