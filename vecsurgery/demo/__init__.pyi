from .cache import Prepared as Prepared
from .cache import prepare as prepare
from .settings import Settings as Settings
from .showing import show as show
from .world import World as World
from .world import make_world as make_world
