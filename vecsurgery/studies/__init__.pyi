from .comparing import compare as compare
from .curves import Curve as Curve
from .curves import curve as curve
from .evaluating import evaluate as evaluate
from .inspecting import inspect as inspect
