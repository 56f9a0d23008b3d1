from .preparing import prepared as prepared
