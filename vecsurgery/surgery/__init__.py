"""Surgery: run, resume, reproduce, and the notebook's calls. It carries out what editing and planning describe.

Lives here: measuring, fitting, writing, judging and the one rename that makes a result exist.
May not: hold mathematics (linalg, projectors) or talk to a terminal (cli).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
