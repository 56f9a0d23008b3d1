from .outcome import verdict as verdict
from .outcome import warnings as warnings
from .page import html as html
from .plain import text as text
from .record import Record as Record
from .record import dumps as dumps
from .record import read as read
from .record import validated as validated
