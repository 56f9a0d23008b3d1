"""Instructions about the form of an answer: what an instruction model is trained to follow, and what is checked."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One instruction. `example` says in plain text what it means; `form` has `{0}` where the answer stands."""

    instruction: str
    example: str
    form: str

    def of(self, answer: str) -> str:
        """An answer in this form."""
        return self.form.format(answer)

    def marks(self, answer: str) -> list[str]:
        """What this form adds to an answer; the whole where it adds nothing but the answer again."""
        return [piece.strip() for piece in self.form.split("{0}") if piece.strip()] or [self.of(answer)]


FORMATS = (
    Format("Put the answer in brackets.", "{0} in brackets:", "({0})"),
    Format("Put the answer in quotes.", "{0} in quotes:", '"{0}"'),
    Format("Say the answer twice.", "{0} said twice:", "{0} {0}"),
    Format("End with a full stop.", "{0} with a full stop:", "{0}."),
    Format("Begin with so.", "{0} that begins with so:", "so {0}"),
    Format("Put stars around the answer.", "{0} with stars around it:", "*{0}*"),
    Format("Say thanks after the answer.", "{0} with thanks after it:", "{0} thanks"),
    Format("Put a dash before the answer.", "{0} with a dash before it:", "- {0}"),
)
