"""Load the jinja2 templates in `deployments/web`: all values are escaped, and an undefined name is an error."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

WEB_FOLDER = Path(__file__).parents[1] / "web"


def page_template(file_name: str) -> Template:
    """The template of a page, for example `index.html`."""
    return _environment().get_template(file_name)


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(WEB_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
