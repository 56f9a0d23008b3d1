"""The workspace of checkpoints, data and recipe that tests of this room start from."""

from support.families import family as family
from support.families import written_families as written_families
from support.workspace import _reports_without_pictures as _reports_without_pictures
from support.workspace import checkpoints as checkpoints
from support.workspace import rain as rain
from support.workspace import workspace as workspace
