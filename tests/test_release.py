"""What a release ships: `make release-check` builds it into dist/ first."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from cifar_ray.config.version import VERSION

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"

release = pytest.mark.release


def test_the_changelog_has_a_section_for_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(VERSION)}\] [-–] \d{{4}}-\d\d-\d\d$", changelog, re.MULTILINE)


@release
def test_the_wheel_has_everything_that_runs_and_nothing_else() -> None:
    [wheel] = DIST.glob(f"cifar_ray-{VERSION}-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
    tracked = {
        path.relative_to(ROOT).as_posix()
        for folder in ("cifar_ray", "deployments")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == tracked
    assert {"cifar_ray/py.typed", "cifar_ray/config/serve.env", "deployments/web/index.html"} <= names


@release
def test_the_sdist_builds_the_same_and_holds_no_data() -> None:
    [sdist] = DIST.glob(f"cifar_ray-{VERSION}.tar.gz")
    with tarfile.open(sdist) as file:
        names = {member.name.partition("/")[2] for member in file.getmembers() if member.isfile()}
    assert {"pyproject.toml", "README.md", "LICENSE", "cifar_ray/__init__.py", "deployments/__init__.py", "PKG-INFO"} <= names
    assert not [name for name in names if name.startswith(("storage/", "data/", ".venv", "site/", "dist/"))]


@release
def test_the_bill_of_materials_names_the_packages_of_the_production_lock() -> None:
    components = json.loads((DIST / "sbom.cdx.json").read_text())["components"]
    locked = dict(re.findall(r"^([a-z0-9.-]+)(?:\[.*\])?==([^ ;]+)", (ROOT / "requirements.production.lock").read_text(), re.MULTILINE))
    listed = {component["name"]: component.get("version") for component in components}
    assert {name: listed.get(name) for name in ("ray", "torch", "starlette")} == {
        name: locked[name] for name in ("ray", "torch", "starlette")
    }
    assert set(locked) <= set(listed)
