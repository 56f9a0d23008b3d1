"""Geometry: what calibration text does at each site, measured once and kept in a file.

Lives here: the geometry file, measuring it, exact union of partial measurements. May not: know of deltas, recipes'
steps or projectors, or keep text or the activations of single tokens.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
