from .edited import Edited as Edited
