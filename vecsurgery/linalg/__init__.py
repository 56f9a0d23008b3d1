"""Kernels on tensors: spectral filter, bisection, eigenvectors, moments, Subspace.

Lives here: pure functions of torch tensors. May not: know of checkpoints, deltas, recipes or files.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
