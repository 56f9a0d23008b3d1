from ._registry import Fit as Fit
from ._registry import FitFunction as FitFunction
from .types import AnswerLosses as AnswerLosses
from .types import Ask as Ask
from .types import Candidate as Candidate
from .types import Coefficients as Coefficients
from .types import CurvePoint as CurvePoint
