from ._registry import Cost as Cost
from ._registry import CostFunction as CostFunction
from ._registry import ProjectFunction as ProjectFunction
from ._registry import Projector as Projector
from ._registry import RequireFunction as RequireFunction
