"""Surgery: the edited weights, plan, check, run, resume, reproduce. The only place that knows all rooms above.

Lives here: what binds recipe, checkpoints, deltas, geometry, projectors and report together.
May not: hold mathematics (linalg, projectors) or talk to a terminal (cli).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
