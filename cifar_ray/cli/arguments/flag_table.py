"""The flags of a command, read from its fields: for help pages and for the nearest flag to a mistyped one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import tyro
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

Command = type[BaseModel]

_METAVARS: Mapping[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "FILE"}
_DEFAULT = re.compile(r"\bdefault\b")
_POSITIONALS = {"reference": "MODEL", "parent": "MODEL"}
_FIELDS_OF = {
    "PATH": "storage out output",
    "DIR": "data_dir explain",
    "FILE.yaml": "config space",
    "NAME": "name save_as resume",
    "MODEL": "model like",
    "RECIPE": "recipe",
    "PART": "freeze",
    "N": "num_workers",
    "TIME": "time_budget",
    "INTERVAL": "checkpoint_every",
    "SIZE": "data_memory",
    "HOST": "host",
    "PATTERN": "list_models",
}
_OF_FIELD = {field: metavar for metavar, fields in _FIELDS_OF.items() for field in fields.split()}


@dataclass(frozen=True)
class Flag:
    """A flag or a positional argument.

    Attributes:
        name: `--epochs`, `--optimizer.lr`; for a positional argument its name, for example `MODEL`.
        metavar: form of the value; empty for a switch.
        text: description.
        default: default as a user would type it; empty if there is none to show.
        negative: the flag that turns a switch off; empty if there is none.
        is_positional: whether this is a positional argument.
        is_required: whether there is no default.
    """

    name: str
    metavar: str
    text: str
    default: str = ""
    negative: str = ""
    is_positional: bool = False
    is_required: bool = False

    @property
    def topic(self) -> str:
        """Topic of the flag: `optimizer` for `--optimizer.lr`; empty for a flag without a topic."""
        return self.name.lstrip("-").rpartition(".")[0]


def subcommands(command: Any) -> dict[str, Command]:
    """The members of a union of subcommands by name; empty for a single command."""
    return {
        extra.name: member
        for option in get_args(command)
        if get_origin(option) is Annotated
        for member, *extras in [get_args(option)]
        for extra in extras
        if getattr(extra, "name", None)
    }


def flags_of(command: Command, default: BaseModel | None = None, prefix: str = "") -> Iterator[Flag]:
    """The flags of a command.

    Args:
        command: a pydantic model.
        default: supplies the defaults; `None` for the defaults of the fields.
        prefix: prefix of the names, for example `optimizer.`.
    """
    for name, field in command.model_fields.items():
        if tyro.conf.Suppress in field.metadata:
            continue
        value = _default(name, field, default)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from flags_of(field.annotation, value, f"{prefix}{_dashed(name)}.")
        else:
            yield _flag(name, field, value, prefix)


def _default(name: str, field: FieldInfo, default: BaseModel | None) -> Any:
    return getattr(default, name) if default is not None else field.get_default(call_default_factory=True)


def _flag(name: str, field: FieldInfo, value: Any, prefix: str) -> Flag:
    given = next(
        (extra for extra in field.metadata if getattr(extra, "metavar", None) or isinstance(getattr(extra, "name", None), str)), None
    )
    written = _dashed(getattr(given, "name", None) or name)
    is_required = value is PydanticUndefined
    metavar = getattr(given, "metavar", None) or _metavar(name, field.annotation)
    text = field.description or ""
    # a description that states the default in words says more than the value
    shown = "" if is_required or value in (None, "", ()) or _DEFAULT.search(text) else _typed(value)
    if tyro.conf.Positional in field.metadata:
        placeholder = getattr(given, "metavar", None) or _POSITIONALS.get(name, name.upper())
        several = " …" if get_origin(field.annotation) is tuple else ""
        return Flag(f"{placeholder}{several}", "", text, shown, is_positional=True, is_required=is_required)
    if field.annotation is bool:
        negative = "" if tyro.conf.FlagCreatePairsOff in field.metadata else f"--{prefix}no-{written}"
        return Flag(f"--{prefix}{written}", "", text, ("yes" if value else "") if negative else "", negative)
    return Flag(f"--{prefix}{written}", metavar, text, shown, is_required=is_required)


def _metavar(name: str, annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _metavar(name, get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    if name in _OF_FIELD:
        return _OF_FIELD[name]
    if get_origin(annotation) is tuple:
        items = get_args(annotation)
        return f"{_metavar('', items[0])} …" if items[-1] is ... else " ".join(_metavar("", item) for item in items)
    options = [option for option in get_args(annotation) if option is not NoneType]
    return "|".join(dict.fromkeys(_metavar("", option) for option in options)) if options else _METAVARS.get(annotation, "TEXT")


def _typed(value: Any) -> str:
    return " ".join(map(_typed, value)) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


def _dashed(name: str) -> str:
    return name.replace("_", "-")
