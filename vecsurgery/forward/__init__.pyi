from .loading import Compute as Compute
from .loading import require_loadable as require_loadable
from .losses import token_losses as token_losses
from .stream import replay as replay
