"""The energies of a geometry's sites, as figures."""

import math

from vecsurgery import linalg
from vecsurgery.geometry import Geometry
from vecsurgery.linalg import Subspace
from vecsurgery.report.sites import SiteEnergies


def site_energies(geometry: Geometry, site: str, top: int, energy: float) -> SiteEnergies:
    """What one site of a geometry holds; `energy`: the share whose directions are counted, in (0, 1)."""
    subspace = geometry.subspace(site)
    facts = geometry.facts[site]
    return SiteEnergies(
        site=site,
        role=_readers(facts["tensors"]),
        layer=int(facts["layer"]),
        width=subspace.width,
        count=subspace.count,
        energies=tuple(subspace.energies[:top].tolist()),
        stored=subspace.rank,
        total=subspace.total,
        rest=subspace.rest,
        effective_rank=_effective(subspace),
        needed=linalg.Filter.of(subspace, energy).rank,
    )


def _effective(subspace: Subspace) -> float:
    """exp of the entropy of the energies' shares; what was not stored counts as spread evenly."""
    if subspace.total <= 0.0:
        return 0.0
    shares = (subspace.energies[subspace.energies > 0.0].double() / subspace.total).tolist()
    outside = subspace.width - subspace.rank
    entropy = -math.fsum(share * math.log(share) for share in shares)
    if subspace.rest > 0.0 and outside:
        share = subspace.rest / subspace.total
        entropy -= share * math.log(share / outside)
    return math.exp(entropy)


def _readers(tensors: dict[str, dict[str, list[dict[str, str]]]]) -> str:
    roles = dict.fromkeys(part["role"] for facts in tensors.values() for part in facts["parts"])
    return "+".join(roles)
