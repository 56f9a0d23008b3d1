from ._registry import ProjectFunction as ProjectFunction
from ._registry import Projector as Projector
from ._registry import RequireFunction as RequireFunction
