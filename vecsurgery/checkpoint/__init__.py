"""Checkpoints: references, layout, weights stored and in memory, reading, atomic sharded writing, side files, card.

Lives here: what a folder of weights holds and how it is read and written, and facts about every tensor.
May not: know of deltas, text, geometry or methods.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
