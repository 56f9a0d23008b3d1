"""IFEval's instructions, checked by lm-eval's own checkers: an extra, imported when a row asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from typing import Any

from vecsurgery.calibration.rows import Row
from vecsurgery.errors import InputError
from vecsurgery.evaluation.extras import require

_LIBRARY = "lm_eval.tasks.ifeval.instructions_registry"


def instruction_checks(row: Row) -> Callable[[str], bool] | None:
    """Whether an answer obeys every instruction of a row in IFEval's published form; None for a row without any.

    `instruction_id_list` names instructions ("keywords:existence"), `kwargs` has the settings of each, in the same
    order; settings that are null are not there. Answers are checked strictly (IFEval's strict accuracy at the level of
    prompts), an empty answer obeys nothing.

    Raises InputError naming file and row for an unknown instruction, for settings that it does not take or lacks, and
    where lm-eval or data of its tokenizer is missing. Source: IFEval, arXiv 2311.07911.
    """
    if "instruction_id_list" not in row.checks:
        if "kwargs" in row.checks:
            raise InputError(f"{row.where}: `kwargs` without `instruction_id_list`; expected both, as IFEval has them")
        return None
    names, settings = row.checks["instruction_id_list"], row.checks.get("kwargs")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputError(f"{row.where}: `instruction_id_list` is {names!r}; expected a list of names")
    fits = isinstance(settings, list) and len(settings) == len(names)
    if not fits or not all(isinstance(each, Mapping) for each in settings or ()):  # type: ignore[attr-defined]
        raise InputError(f"{row.where}: `kwargs` is {settings!r}; expected a list of {len(names)} objects")
    assert isinstance(settings, list)
    made = [_instruction(row, name, own) for name, own in zip(names, settings, strict=True)]

    def check(answer: str) -> bool:
        return bool(answer.strip()) and all(
            _obeys(row, name, each, answer) for name, each in zip(names, made, strict=True)
        )

    return check


def _instruction(row: Row, name: str, settings: Mapping[str, Any]) -> Any:
    """The checker of one instruction under its settings."""
    known = _registry()
    if name not in known:
        near = get_close_matches(name, known, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"{row.where}: there is no instruction {name!r} in IFEval{meant}")
    made = known[name](name)
    given = {key: value for key, value in settings.items() if value}
    lacking = [key for key in made.get_instruction_args_keys() if key not in given]
    if lacking:
        raise InputError(
            f"{row.where}: `kwargs` of {name!r} lack {', '.join(lacking)}; expected all, as the library would choose "
            "those that are missing at random"
        )
    try:
        made.build_description(**given)
    except (TypeError, ValueError) as error:
        raise InputError(f"{row.where}: `kwargs` of {name!r} are {given!r}: {error}") from error
    return made


def _obeys(row: Row, name: str, instruction: Any, answer: str) -> bool:
    try:
        return bool(instruction.check_following(answer))
    except LookupError as error:
        raise InputError(
            f"{row.where}: checking {name!r} needs data of nltk that is not on this machine; fetch it once with "
            "`python -m nltk.downloader punkt_tab`"
        ) from error


@cache
def _registry() -> Mapping[str, Any]:
    with _without_downloads():
        library = require(_LIBRARY, "lm_eval[ifeval]", "checking instructions of IFEval", "lm-eval")
    require("langdetect", "langdetect", "checking instructions of IFEval", "lm-eval").DetectorFactory.seed = 0
    known: Mapping[str, Any] = library.INSTRUCTION_DICT
    return known


@contextmanager
def _without_downloads() -> Iterator[None]:
    """The library fetches data of nltk when it is imported, unless it takes itself for one process of several."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before
