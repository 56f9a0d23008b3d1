"""The errors that users see: one message each, one exit code each.

A message says what was being done, what came, what was expected and what to do.
"""


class VecsurgeryError(Exception):
    """Anything that stops a command with one clear message."""

    exit_code = 1


class InputError(VecsurgeryError):
    """Something the user gave (recipe, data, checkpoint, option) cannot be used; nothing was changed."""

    exit_code = 2


class UnsupportedError(InputError):
    """An input of a kind that is refused by name: a format, an architecture, a layout."""


class NotFiniteError(InputError):
    """A model whose weights are finite and whose activations are not."""


class RunError(VecsurgeryError):
    """A fault met while a run was working (disk full, file vanished); what was finished can be resumed."""


class GateError(VecsurgeryError):
    """The result does not meet a condition of the recipe; it was kept under the name OUT.failed."""
