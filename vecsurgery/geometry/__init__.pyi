from .file import Geometry as Geometry
from .info import GeometryInfo as GeometryInfo
from .measuring import measure as measure
from .moments import measure_moments as measure_moments
from .moments import union as union
