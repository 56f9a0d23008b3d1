"""What a geometry file says about itself: model, data, token rule, sites. All JSON, never the text of a sample."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vecsurgery.calibration.types import Sample, Samples
from vecsurgery.checkpoint.types import Layout, Site, Weights
from vecsurgery.errors import InputError
from vecsurgery.forward import Compute
from vecsurgery.recipe.types import Around, Between, TokenRule

VERSION = 1


@dataclass(frozen=True)
class GeometryInfo:
    """What was measured, on what and how; two measurements with equal info are the same."""

    kind: str
    """"subspaces" (directions with energies), or "moments" (partial statistics that can be united)."""
    model: str
    """The model as the user named it."""
    model_fingerprint: str
    architecture: str
    data_fingerprint: str
    tokens: Any
    """The token rule, as the recipe language writes it."""
    skip_first: int
    max_directions: int
    compute: Compute
    counts: Mapping[str, int]
    """Of the samples: rows, repeats, samples, cut, dropped, tokens, positions."""
    rows: tuple[str, ...]
    """Identities (hashes) of the rows that were used, sorted."""
    version: int = VERSION

    @classmethod
    def of(
        cls,
        weights: Weights,
        samples: Samples,
        *,
        kind: str,
        model: str,
        tokens: TokenRule,
        skip_first: int,
        max_directions: int,
        compute: Compute,
    ) -> GeometryInfo:
        """The info of a measurement that is about to be made."""
        return cls(
            kind=kind,
            model=model,
            model_fingerprint=weights.fingerprint,
            architecture=weights.layout.architecture,
            data_fingerprint=samples.fingerprint,
            tokens=rule_to_json(tokens),
            skip_first=skip_first,
            max_directions=max_directions,
            compute=compute,
            counts=dict(samples.counts),
            rows=row_identities(samples.samples),
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values from which `from_json` makes the same info."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> GeometryInfo:
        """Errors: InputError for a version that is not known, or missing entries."""
        if values.get("version") != VERSION:
            raise InputError(f"it has format version {values.get('version')!r}, this release reads version {VERSION}")
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise InputError(f"its description has the entries {sorted(values)}, expected {sorted(names)}")
        return cls(**{**values, "rows": tuple(values["rows"])})

    def differences(self, **expected: Any) -> list[str]:
        """One phrase for each of `expected` that this geometry does not have."""
        return [
            f"{name.replace('_', ' ')}: the geometry has {getattr(self, name)!r}, expected {value!r}"
            for name, value in expected.items()
            if value is not None and getattr(self, name) != value
        ]


def rule_to_json(rule: TokenRule) -> Any:
    """A token rule as the recipe language writes it."""
    if isinstance(rule, Between):
        return {"between": [rule.open, rule.close]}
    if isinstance(rule, Around):
        return {"around": list(rule.tags), "before": rule.before, "after": rule.after}
    return rule


def row_identities(samples: Sequence[Sample]) -> tuple[str, ...]:
    """The identities of the rows behind these samples, sorted, each once."""
    return tuple(sorted({sample.row for sample in samples}))


def site_facts(layout: Layout, site: Site) -> dict[str, Any]:
    """What the file says of a site beside its numbers: width, and its tensors with orientation and parts."""
    tensors = {}
    for name in site.tensors:
        matrix = layout.tensors[name].matrix
        parts = [] if matrix is None else [dataclasses.asdict(part) for part in matrix.parts]
        tensors[name] = {"transposed": matrix is not None and matrix.transposed, "parts": parts}
    return {"layer": site.layer, "width": site.width, "tensors": tensors}
