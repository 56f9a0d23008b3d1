"""Writes the generated parts of the documentation: key tables, commands, measures, the list of files.

    python docs/generate.py            # rewrites what stands between the markers
    python docs/generate.py --check    # exit code 1 where a file is not up to date

A generated part stands between `<!-- generated: NAME -->` and `<!-- end of NAME -->`. Everything in it is read from the
code, so it cannot say anything else than the code does.
"""

import ast
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic import BaseModel, PlainValidator
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parent.parent
_PACKAGE = ROOT / "vecsurgery"
_PART = re.compile(r"(<!-- generated: (keys|commands|files|measures) -->\n).*?(<!-- end of \2 -->)", re.DOTALL)
_TYPES = {
    "parse_texts": "text or list of texts",
    "parse_rows": "text `a-b`",
    "parse_size": "size",
    "parse_tokens": "token rule",
    "parse_layers": "block numbers",
    "parse_number": "number, gradient or filters",
    "parse_numbers": "number, gradient or filters, or a map of delta to these",
}
"""Values that the language parses itself, by the function that does it."""
_PLAIN = {str: "text", int: "whole number", float: "number", bool: "true / false"}
_SIGNS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def keys() -> str:
    """One table for each map of the recipe language."""
    from vecsurgery import methods
    from vecsurgery.merges import mergekit
    from vecsurgery.recipe import grammar

    parts = [
        _table("Top level", grammar.RecipeKeys),
        _table("`deltas.NAME`", grammar.DeltaKeys),
        _table("Data keys, of `geometry.NAME`, `evaluate.NAME`, every `fit` and every gate", grammar.DataKeys),
        _table("`geometry.NAME`, beside the data keys", grammar.GeometryKeys, leave_out=grammar.DataKeys),
        _table("Every step", grammar.StepKeys),
        _table("`scale`", grammar.ScaleKeys, leave_out=grammar.StepKeys),
        _table("`merge`, in place of those of every step", grammar.MergeKeys),
    ]
    verbs = ["project", "fit", "merge"]
    own = [each for each in methods.builtin().values() if each not in mergekit.MERGES]
    found = sorted(own, key=lambda each: (verbs.index(each.verb), each.name))
    parts += [_table(f"`{each.verb}: {each.name}`", each.options) for each in found]
    parts += [_merges(mergekit.MERGES), _merge_options(mergekit.MERGES)]
    parts.append(_table("Every entry of `gates`, beside the data keys", grammar.GateKeys, leave_out=grammar.DataKeys))
    return "\n\n".join([*parts, _table("`output`", grammar.OutputKeys)])


def commands() -> str:
    """The commands with the sentence that --help gives them."""
    from vecsurgery.cli import main

    context = click.Context(main)
    rows = ["| command | what it does |", "|---|---|"]
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        assert command is not None  # it was listed
        own = click.Context(command)
        needed = [each for each in command.get_params(own) if isinstance(each, click.Option) and each.required]
        options = [f"{option.opts[0]} {option.make_metavar(own)}" for option in needed]
        arguments = " ".join([*command.collect_usage_pieces(own)[1:], *options])
        rows.append(f"| `vecsurgery {name}{' ' if arguments else ''}{_cell(arguments)}` | {_summary(command)} |")
    return "\n".join(rows)


def files() -> str:
    """Every room and file of the package with the sentence that its docstring opens with."""
    lines = []
    for room in sorted({path.parent for path in _PACKAGE.glob("*/__init__.py")}):
        lines.append(f"- **{room.name}/** {_clause(room / '__init__.py')}")
        lines += [f"  {line}" for line in _files_of(room)]
    lines += [f"- `{path.name}` {_clause(path)}" for path in sorted(_PACKAGE.glob("*.py")) if path.name[0] != "_"]
    return "\n".join(lines)


def _files_of(folder: Path) -> list[str]:
    """The files of a folder, and behind them those of the folders in it."""
    lines = [f"- `{path.name}` {_clause(path)}" for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    for inner in sorted(path.parent for path in folder.glob("*/__init__.py")):
        lines.append(f"- **{inner.name}/** {_clause(inner / '__init__.py')}")
        lines += [f"  {line}" for line in _files_of(inner)]
    return lines


def measures() -> str:
    """Every measure of `vecsurgery evaluate`, from the catalogue."""
    from vecsurgery.evaluation import catalogue

    rows = ["| measure | name | unit | what it is | source | name in `TOFU_EVAL.json` |", "|---|---|---|---|---|---|"]
    for each in (*catalogue.MEASURES, catalogue.leak("k")):
        keys = f"`{each.key.format(data='NAME')}`" + (f", `{each.forget_key}`" if each.forget_key else "")
        cells = [each.title, f"`{each.name}`", each.unit, each.formula, each.source, keys]
        rows.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(rows)


_PARTS: dict[str, Callable[[], str]] = {"keys": keys, "commands": commands, "files": files, "measures": measures}


def generated(text: str) -> str:
    """A page with its generated parts made anew."""

    def part(match: re.Match[str]) -> str:
        return f"{match[1]}\n{_PARTS[match[2]]()}\n\n{match[3]}"

    return _PART.sub(part, text)


def pages() -> list[Path]:
    """The pages that may have generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def _table(title: str, model: type[BaseModel], leave_out: type[BaseModel] | None = None) -> str:
    known = leave_out.model_fields if leave_out is not None else {}
    rows = [
        f"| `{field.alias or name}` | {_type(field)} | {_default(field)} | {_cell(field.description or '')} |"
        for name, field in model.model_fields.items()
        if name not in known
    ]
    return "\n".join([f"**{title}**", "", "| key | type | default | meaning |", "|---|---|---|---|", *rows])


def _merges(merges: Sequence[Any]) -> str:
    """mergekit's methods: how many deltas they take, whether they weigh them, their options with defaults."""
    rows = ["| `merge` | is given | deltas | `weights` | options and defaults |", "|---|---|---|---|---|"]
    for each in merges:
        most = "or more" if each.most is None else f"to {each.most}"
        count = str(each.least) if each.most == each.least else f"{each.least} {most}"
        fields = each.options.model_fields.items()
        options = ", ".join(f"`{name}` {'(required)' if f.is_required() else _default(f)}" for name, f in fields)
        given = "W + D" if each.of_weights else "D"
        rows.append(f"| `{each.name}` | {given} | {count} | {'yes' if each.weighted else '–'} | {options or '–'} |")
    return "\n".join(["**`merge: NAME`, the methods of mergekit**", "", *rows])


def _merge_options(merges: Sequence[Any]) -> str:
    """What the options of mergekit's methods mean."""
    fields = [named for each in merges for named in each.options.model_fields.items()]
    rows = sorted({f"| `{name}` | {_type(field)} | {field.description} |" for name, field in fields})
    return "\n".join(["**Options of mergekit's methods**", "", "| key | type | meaning |", "|---|---|---|", *rows])


def _type(field: FieldInfo) -> str:
    own = _parsed(field.metadata)
    if own is not None:
        return own
    bounds = [f"{_SIGNS[sign]} {value:g}" for sign, value in _bounds(field.metadata)]
    extra = field.json_schema_extra
    if isinstance(extra, dict) and extra.get("reference") in ("geometry", "model"):
        return "name of a geometry" if extra["reference"] == "geometry" else "model"
    return _cell(" ".join([_annotation(field.annotation), ", ".join(bounds)]).strip())


def _parsed(metadata: Any) -> str | None:
    for each in metadata:
        if isinstance(each, PlainValidator):
            return _TYPES[each.func.__name__]
    return None


def _bounds(metadata: list[Any]) -> list[tuple[str, Any]]:
    return [(sign, getattr(each, sign)) for each in metadata for sign in _SIGNS if hasattr(each, sign)]


def _annotation(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " / ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_annotation(each) for each in arguments if each is not type(None))
    if annotation == list[dict[str, Any]]:
        return "list of maps"
    if origin is dict:
        return f"map of name to {_annotation(arguments[1])}"
    if origin is tuple:
        return f"[{', '.join(_annotation(each) for each in arguments)}]"
    if origin is list:
        each = _annotation(arguments[0])
        return "list of maps" if each == "map" else f"list of {each}"
    if hasattr(annotation, "__metadata__"):
        return _parsed(annotation.__metadata__) or _annotation(arguments[0])
    if annotation is Any or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "map"
    return _PLAIN[annotation]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is None or value == {} or value == [] or isinstance(value, BaseModel):
        return "–"
    if isinstance(value, tuple):
        return f"`[{', '.join(f'{each:g}' for each in value)}]`"
    return f"`{value}`" if not isinstance(value, bool) else f"`{str(value).lower()}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _summary(command: click.Command) -> str:
    help_text = (command.help or "").partition("\n\n")[0]
    return _cell(" ".join(help_text.replace("\b", "").split()))


def _clause(path: Path) -> str:
    """The first sentence of a module's docstring, without the name that it may start with."""
    paragraph = " ".join((ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n\n")[0].split())
    sentence = paragraph.partition(". ")[0].rstrip(".")
    name = path.parent.name if path.name == "__init__.py" else path.stem
    sentence = re.sub(rf"^(vecsurgery )?{name}: ", "", sentence, flags=re.IGNORECASE)
    return f"{sentence}."


def main() -> int:
    """Rewrite the pages, or with --check only say which are not up to date."""
    sys.path.insert(0, str(ROOT))
    stale = [path for path in pages() if generated(path.read_text("utf-8")) != path.read_text("utf-8")]
    for path in stale:
        if "--check" not in sys.argv:
            path.write_text(generated(path.read_text("utf-8")), encoding="utf-8")
        print(f"{'stale' if '--check' in sys.argv else 'wrote'} {path.relative_to(ROOT)}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
