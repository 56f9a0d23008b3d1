from .editing import Edited as Edited
from .planning import Plan as Plan
from .studies import Curve as Curve
from .studies import compare as compare
from .studies import curve as curve
from .studies import evaluate as evaluate
from .studies import inspect as inspect
from .surgery import apply as apply
from .surgery import check as check
from .surgery import edit as edit
from .surgery import extract as extract
from .surgery import measure as measure
from .surgery import plan as plan
from .surgery import reproduce as reproduce
from .surgery import run as run
from .surgery import undo as undo
from .surgery import union as union
from .surgery import verify as verify
from .surgery import weights_of as weights_of
from .surgery import write as write

__version__: str
