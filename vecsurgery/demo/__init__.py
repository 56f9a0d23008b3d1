"""Tiny models, made on the user's machine or shipped, and what the shipped recipes do to them.

Lives here: for each demonstration (`unlearning`, `reasoning`) its world, training settings and page; what they share:
tokenizers, training, model folders and their cache. May not: contain any method of surgery, or choose a number by which
method it favours.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
