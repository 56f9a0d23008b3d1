"""The workspace of checkpoints, data and recipe that tests of this room start from."""

from support.workspace import _reports_without_pictures as _reports_without_pictures
from support.workspace import checkpoints as checkpoints
from support.workspace import rain as rain
from support.workspace import workspace as workspace
