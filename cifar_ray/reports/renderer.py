"""One HTML file that opens offline: pictures inside, no script, nothing from elsewhere."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_NUMBER = re.compile(r"[-+–]?[\d.,]*(e-\d+)?%?")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #1a202c }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #cbd5e0 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top }
th { border-bottom: 1px solid #a0aec0 } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
img { max-width: 100%; display: block } figure { margin: 1rem 0 } figcaption { color: #4a5568 }
.lead { color: #4a5568; margin-top: .2rem } .tables { max-height: 30rem; overflow: auto }
"""


@dataclass(frozen=True)
class Picture:
    """A PNG with what it shows in words."""

    png: bytes
    description: str


@dataclass(frozen=True)
class Table:
    """Rows of cells; numbers are set to the right below a head; without titles there is none."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it: text, tables and pictures in this order of writing."""

    title: str
    content: Sequence[str | Table | Picture]


def render(title: str, lead: str, sections: Sequence[Section]) -> bytes:
    """The whole page, UTF-8."""
    body = "".join(f"<h2>{escape(section.title)}</h2>{''.join(map(_render, section.content))}" for section in sections)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head>'
        f'<body><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>{body}</body></html>\n'
    ).encode()


def _render(content: str | Table | Picture) -> str:
    if isinstance(content, str):
        return f"<p>{escape(content)}</p>"
    if isinstance(content, Picture):
        data, description = base64.b64encode(content.png).decode(), escape(content.description)
        return f'<figure><img src="data:image/png;base64,{data}" alt="{description}"><figcaption>{description}</figcaption></figure>'
    titled = any(content.head)
    head = f"<tr>{''.join(_cell('th', cell) for cell in content.head)}</tr>" if titled else ""
    rows = "".join(f"<tr>{''.join(_cell('td', cell, titled) for cell in row)}</tr>" for row in content.rows)
    return f'<div class="tables"><table>{head}{rows}</table></div>'


def _cell(tag: str, text: str, may_be_number: bool = False) -> str:
    number = ' class="number"' if may_be_number and _NUMBER.fullmatch(text) else ""
    return f"<{tag}{number}>{escape(text)}</{tag}>"
