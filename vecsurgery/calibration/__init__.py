"""Calibration: rows → rendered text → token ids → positions; one way for geometry and evaluation.

Lives here: reading of data files, rendering with a chat template, token rules, checks of tokenizers.
May not: read weights, run a model, or know what a sample is used for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
