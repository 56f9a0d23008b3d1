from ._discovery import available as available
from ._discovery import builtin as builtin
from ._registry import ProjectFunction as ProjectFunction
from ._registry import Projector as Projector
