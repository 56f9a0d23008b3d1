"""Our projectors as merge methods of mergekit-yaml: what its configuration means, and the tensors that come of it.

Lives here: parameters of the methods, what a configuration names, checked and opened, one tensor of the result.
May not: compute anything itself (editing), or parse a command line.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
