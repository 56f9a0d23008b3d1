"""Reports: render the record of a run as text and as one HTML page, and put it in one line.

Lives here: the schema of the record and pure functions from a record to words, tables and pictures.
May not: measure anything, read a checkpoint, or know how a run works. No torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
