from . import reasoning as reasoning
from . import unlearning as unlearning
