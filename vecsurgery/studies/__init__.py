"""Studies: what looks at models and leaves no model behind: evaluate, curve, compare, inspect.

Lives here: measures of any number of models, damage against forgetting, two checkpoints side by side,
deltas before any surgery.
May not: write a checkpoint (surgery) or talk to a terminal (cli).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
