"""Render a report as one HTML file that opens offline: it embeds its pictures and has no scripts and no external links."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

_NUMBER = r"[-+]?[\d.,]+(e[-+]?\d+)?( ?%)?"
_NUMBERS = re.compile(rf"(< )?{_NUMBER}((/| and | ± ){_NUMBER})?|–")


@dataclass(frozen=True)
class Picture:
    """A PNG and its caption."""

    kind: ClassVar[str] = "picture"

    png: bytes
    caption: str

    @property
    def base64(self) -> str:
        """The PNG in base64, for a data URI."""
        return base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Table:
    """Rows of text cells; numbers are aligned to the right.

    Attributes:
        head: column titles; empty for a list of names and values, whose first cells are the row titles.
        rows: cells, as many as titles.
        best_row: index of the highlighted row.
    """

    kind: ClassVar[str] = "table"

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    best_row: int | None = None

    def is_numeric(self, column: int) -> bool:
        """Whether all non-empty cells of a column are numbers."""
        cells = [row[column] for row in self.rows if row[column]]
        return bool(cells) and all(map(_is_number, cells))


@dataclass(frozen=True)
class Code:
    """A command or the content of a file, in a fixed-width font."""

    kind: ClassVar[str] = "code"

    text: str


@dataclass(frozen=True)
class Section:
    """A heading and what follows it: paragraphs, tables, pictures and code, in this order."""

    title: str
    content: Sequence[str | Table | Picture | Code]


def render(title: str, lead: str, sections: Sequence[Section]) -> bytes:
    """Render the page as UTF-8. All text is escaped.

    Args:
        title: title of the page and its first heading.
        lead: one line below the title.
        sections: in order.
    """
    return template("report.html.j2").render(title=title, lead=lead, sections=sections).encode()


@cache
def template(name: str) -> Template:
    """A template of this package; it escapes all text."""
    environment = Environment(
        loader=PackageLoader("cifar_ray.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests["numeric_text"] = _is_number
    return environment.get_template(name)


def _is_number(text: str) -> bool:
    return _NUMBERS.fullmatch(text) is not None
