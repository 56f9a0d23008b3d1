"""amplify: multiply the projected matrices by one number, so that as much is forgotten as before."""

from pydantic import BaseModel, ConfigDict, Field, model_validator

SHARE = 0.9
"""Share of the raw forgetting that is aimed at where the options name no target."""


class Amplify(BaseModel):
    """Options of `fit: amplify`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    share: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="Target: this share of the raw delta's rise of the capped answer loss over into; 0.9 where no "
        "target is given. Give one of share, loss, probability and reference.",
    )
    loss: float | None = Field(default=None, gt=0.0, description="Target: this capped answer loss, in nats.")
    probability: float | None = Field(
        default=None, gt=0.0, lt=1.0, description="Target: this mean probability of an answer token."
    )
    reference: str | None = Field(
        default=None,
        min_length=1,
        description="Target: the capped answer loss of this model, such as one that was trained without the data.",
        json_schema_extra={"reference": "model"},
    )
    range: tuple[float, float] = Field(
        default=(1.0, 8.0), description="Least and largest factor that is tried, 0 < least < largest."
    )

    @model_validator(mode="after")
    def _one_target(self) -> "Amplify":
        targets = ("share", "loss", "probability", "reference")
        given = [name for name in targets if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"at most one of {', '.join(targets)} may be given; got {' and '.join(given)}")
        if not given:
            object.__setattr__(self, "share", SHARE)  # the model is frozen for everyone but itself
        return self

    @model_validator(mode="after")
    def _ordered_range(self) -> "Amplify":
        low, high = self.range
        if not 0.0 < low < high:
            raise ValueError(f"range needs 0 < least < largest, as in [1, 8]; got [{low:g}, {high:g}]")
        return self
