"""What a geometry file says of each site: how many directions carry how much of the energy of its text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SiteEnergies:
    """The energies of one site."""

    site: str
    role: str
    """What reads the site: the last parts of its tensors' names."""
    layer: int
    width: int
    """in."""
    count: int
    """Token positions that were measured."""
    energies: tuple[float, ...]
    """The largest, descending: mean squared activation along each direction."""
    stored: int
    """Directions in the file."""
    total: float
    """Energy of all directions: the mean squared norm of an input."""
    rest: float
    """Energy outside the stored directions."""
    effective_rank: float
    """exp of the entropy of the shares s_i/Σs, energy outside spread evenly over the other directions."""
    needed: int
    """The fewest leading directions that hold the wanted share of the energy."""
