"""Pages of the site that are made from the code and from files outside docs/: a hook of MkDocs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

ROOT = Path(__file__).resolve().parent.parent
PYTHON_REFERENCE = {
    "Notebooks and scripts": ["cifar_ray.notebook", "cifar_ray.notebook.trained_model", "cifar_ray.notebook.running_server"],
    "Client of a server": ["cifar_ray.client"],
    "Model store": ["cifar_ray.store.registry"],
    "Predictor": ["cifar_ray.inference.predictor"],
    "Errors": ["cifar_ray.errors"],
}
# Subcommands have help pages of their own
_SUBCOMMANDS = ("store", "review", "keys", "cache")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the made pages, and the results of benchmarks."""
    made = {
        "reference/commands.md": "".join(_commands()),
        "reference/settings.md": "".join(_settings()),
        "reference/python.md": _python_reference(),
        "reference/contributing.md": _outside("CONTRIBUTING.md"),
        "reference/changes.md": _outside("CHANGELOG.md"),
        "reference/security.md": _outside("SECURITY.md"),
    }
    results = sorted((ROOT / "benchmarks" / "results").glob("*.md"))
    for path in results:
        made[f"reference/results/{path.name}"] = _with_links(path.read_text(encoding="utf-8"), "../" * 2)
    rows = "".join(f"* [{_title(path)}](results/{path.name})\n" for path in results)
    made["reference/results.md"] = f"# Results\n\nEvery figure with machine, n, spread and command.\n\n{rows}"
    for path, content in made.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links out of docs/ point to the made pages."""
    return _with_links(markdown, "../" * page.file.src_uri.count("/"))


def _with_links(markdown: str, up: str) -> str:
    markdown = re.sub(r"\]\((?:\.\./)+docs/", f"]({up}", markdown)
    markdown = re.sub(r"\]\((?:\.\./)*benchmarks/results/([a-z_]+\.md)(#[^)]*)?\)", rf"]({up}reference/results/\1)", markdown)
    markdown = re.sub(r"\]\((?:\.\./)*benchmarks/results\)", rf"]({up}reference/results.md)", markdown)
    for name, page in {"CONTRIBUTING": "contributing", "CHANGELOG": "changes", "SECURITY": "security"}.items():
        markdown = re.sub(rf"\]\((?:\.\./)*{name}\.md\)", rf"]({up}reference/{page}.md)", markdown)
    # files that are not pages: by their name only
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)*(?:examples|LICENSE|deploy|tests)[^)]*\)", r"\1", markdown)


def _outside(name: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    return _with_links(re.sub(r"\]\(docs/", "](../", text), "../")


def _title(path: Path) -> str:
    return path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")


def _help(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cifar_ray", *arguments], capture_output=True, text=True, cwd=ROOT, check=True,
        env={"COLUMNS": "110", "PATH": "/usr/bin:/bin", "NO_COLOR": "1"},
    )  # fmt: skip
    return done.stdout.rstrip()


def _commands() -> Iterator[str]:
    from cifar_ray.__main__ import VERBS

    yield "# Commands\n\nEach is `cifar-ray VERB`, or `python -m cifar_ray.VERB`.\n"
    yield "`--help` lists the flags that matter, and `--help-all` all of them.\n"
    for verb, what in VERBS.items():
        yield f"\n## {verb}\n\n{what[0].upper()}{what[1:]}.\n\n```text\n{_help(verb, '--help')}\n```\n"
        if verb in _SUBCOMMANDS:
            for name in re.findall(r"^\s{2,6}([a-z][a-z-]+)\s{2,}", _help(verb, "--help"), re.MULTILINE):
                yield f"\n### {verb} {name}\n\n```text\n{_help(verb, name, '--help')}\n```\n"


def _settings() -> Iterator[str]:
    from cifar_ray.config import TrainConfig
    from cifar_ray.config.serve_config import ServeConfig

    yield "# Settings\n\n## Training\n\nFlags of `cifar-ray train` (`_` becomes `-`), and keys of `--config` files.\n"
    yield from _table(TrainConfig, "")
    yield "\n## Serving\n\nArguments of `serve run deployments:app`, as `key=value`, and keys under `args` in a config file.\n"
    yield from _table(ServeConfig, "")


def _table(model: type[BaseModel], prefix: str) -> Iterator[str]:
    nested: list[tuple[str, type[BaseModel]]] = []
    rows = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            nested.append((name, kind))
            continue
        shown = _kind(kind).replace("|", r"\|")
        default = "" if field.default in (None, PydanticUndefined, ()) else f"`{field.default}`"
        text = (field.description or "").replace("|", r"\|").replace("<", "&lt;")
        rows.append(f"| `{prefix}{name}` | {shown} | {default} | {text} |\n")
    if rows:
        yield "\n| setting | type | default | meaning |\n|---|---|---|---|\n"
        yield from rows
    for name, kind in nested:
        yield f"\n### {prefix}{name}\n"
        yield from _table(kind, f"{prefix}{name}.")


def _kind(kind: Any) -> str:
    """A type as people write it; of a choice, its values."""
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    if get_origin(kind) in (UnionType, Union):
        return " | ".join("none" if part is type(None) else _kind(part) for part in get_args(kind))
    if get_args(kind):
        inside = ", ".join("…" if part is ... else _kind(part) for part in get_args(kind))
        return f"{get_origin(kind).__name__}[{inside}]" if isinstance(get_origin(kind), type) else _kind(get_args(kind)[0])
    return getattr(kind, "__name__", str(kind))


def _python_reference() -> str:
    parts = ["# Python reference\n\nThe parts that programs may rely on between releases. [Python API](../python.md) has examples.\n"]
    for title, modules in PYTHON_REFERENCE.items():
        parts.append(f"\n## {title}\n")
        parts.extend(f"\n::: {module}\n" for module in modules)
    return "".join(parts)
