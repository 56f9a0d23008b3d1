"""Tables of what a user can get wrong, and what each entry must come to: one clear error and nothing left behind."""

from collections.abc import Callable
from dataclasses import dataclass, field

from click.testing import CliRunner
from support.workspace import Workspace

from vecsurgery.cli import main

Spoil = Callable[[Workspace], str | None]
"""Changes the workspace; returns the recipe's text, "SET …" for the command line, or None for the recipe as changed."""


@dataclass
class Table:
    """Ways to spoil a workspace, with words that the error must contain."""

    entries: list[tuple[str, Spoil, tuple[str, ...]]] = field(default_factory=list)

    def case(self, name: str, *expected: str) -> Callable[[Spoil], None]:
        """Register one."""

        def register(function: Spoil) -> None:
            self.entries.append((name, function, expected))

        return register

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.entries]


def require_refused(workspace: Workspace, spoil: Spoil, expected: tuple[str, ...]) -> None:
    """The run of a spoilt workspace exits with 2 and one error that holds these words; the output stays as it was."""
    text = spoil(workspace)
    options = text.replace("SET ", "--set ").split() if text and text.startswith("SET ") else []
    recipe = workspace.write(None if options else text)
    had = sorted(path.name for path in workspace.out.iterdir()) if workspace.out.exists() else None
    result = CliRunner().invoke(main, ["run", str(recipe), str(workspace.out), *options])
    assert result.exit_code == 2, result.output + repr(result.exception)
    assert result.stderr.count("error: ") == 1
    message = "error: " + result.stderr.partition("error: ")[2]
    assert "Traceback" not in message
    for word in expected:
        assert word in message, message
    after = sorted(path.name for path in workspace.out.iterdir()) if workspace.out.exists() else None
    assert after == had
