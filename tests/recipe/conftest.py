"""Three small methods and a folder with a recipe's files, so that the language is tested without any projector."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vecsurgery.recipe import Method, Recipe, RecipeError, load
from vecsurgery.recipe.grammar import Number, Numbers


class Soft(BaseModel):
    """Suppress softly."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    geometry: str = Field(description="What to protect.", json_schema_extra={"reference": "geometry"})
    keep: float | None = Field(default=None, gt=0, lt=1, description="Share that stays.")
    strength: float | None = Field(default=None, ge=0, description="λ.")
    mean: float | None = Field(default=1.0, description="A number, or null for none.")
    others: Literal["source", "drop"] = Field(default="source", description="Other tensors.")

    @model_validator(mode="after")
    def _one_target(self) -> "Soft":
        if (self.keep is None) == (self.strength is None):
            raise ValueError("give exactly one of keep and strength")
        return self


class Hard(BaseModel):
    """Cut hard."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    geometry: str = Field(description="What to protect.", json_schema_extra={"reference": "geometry"})
    rtol: float = Field(default=0.1, gt=0, lt=1, description="Where to cut.")


class Blend(BaseModel):
    """Blend several into one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    density: Numbers = Field(default=1.0, description="Share that stays.")
    balance: Number = Field(default=0.5, description="Where between.")
    scale: float = Field(default=1.0, description="An option that is called as a verb is.")


class Pick(BaseModel):
    """Pick from one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    t: Number = Field(description="How much.")


class Louder(BaseModel):
    """Multiply by what is found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    share: float = Field(default=0.9, gt=0, le=1, description="Share that is aimed at.")
    range: tuple[float, float] = Field(default=(1.0, 8.0), description="Least and largest factor.")
    like: str | None = Field(default=None, description="A model.", json_schema_extra={"reference": "model"})


@dataclass(frozen=True)
class SmallMethod:
    name: str
    options: type[BaseModel]
    verb: Literal["project", "fit", "merge"] = "project"
    least: int = 1
    most: int | None = None
    weighted: bool = True


@pytest.fixture
def methods() -> Mapping[str, Method]:
    return {
        "soft": SmallMethod("soft", Soft),
        "hard": SmallMethod("hard", Hard),
        "louder": SmallMethod("louder", Louder, "fit"),
        "blend": SmallMethod("blend", Blend, "merge"),
        "pick": SmallMethod("pick", Pick, "merge", most=1, weighted=False),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two models, an adapter, and data files."""
    for name in ("original", "tuned", "adapter"):
        (tmp_path / name).mkdir()
    for name in ("retain.jsonl", "more.jsonl", "forget.jsonl", "test.jsonl", "chat.jinja", "old.safetensors"):
        (tmp_path / name).touch()
    return tmp_path


VALID = """\
into: original
deltas:
  change: {tuned: tuned}
  lora: {adapter: adapter}
geometry:
  kept: {data: retain.jsonl}
steps:
  - {project: soft, geometry: kept, keep: 1e-3, delta: change}
  - {scale: 0.5, layers: 0-3}
weights: {change: 2}
"""


@pytest.fixture
def valid() -> str:
    return VALID


Read = Callable[..., Recipe]


@pytest.fixture
def read(folder: Path, methods: Mapping[str, Method]) -> Read:
    """Loads a text as a recipe of `folder`."""

    def read_text(text: str, *overrides: str, require_files: bool = True) -> Recipe:
        path = folder / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return load(path, methods, overrides=overrides, require_files=require_files)

    return read_text


Problems = Callable[..., list[str]]


@pytest.fixture
def problems(read: Read, folder: Path) -> Problems:
    """The problems of a text, each as `LINE: path: what` (or as it stands for an override)."""

    def problems_of(text: str, *overrides: str) -> list[str]:
        with pytest.raises(RecipeError) as caught:
            read(text, *overrides)
        start = str(folder / "recipe.yaml") + ":"
        return [str(problem).removeprefix(start) for problem in caught.value.problems]

    return problems_of
