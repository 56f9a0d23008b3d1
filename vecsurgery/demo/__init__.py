"""A world, an original model and a damaged unlearned one, made on the user's machine in about a minute.

Lives here: the synthetic world, its tokenizer, training and unlearning, their cache, and the demonstration on them.
May not: contain any method of surgery, or choose a setting after having seen what a projector does.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
