"""Holds the floors of docs/design.md by reading the imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS: dict[str, int] = {
    "cifar_ray.errors": 0,
    "cifar_ray.cluster.process": 1,
    "cifar_ray.config": 1,
    "cifar_ray.metrics.accuracy": 1,
    "cifar_ray.storage": 1,
    "cifar_ray.client": 1,
    "cifar_ray.config.api_keys": 2,
    "cifar_ray.data": 2,
    "cifar_ray.models": 2,
    "cifar_ray.store": 2,
    "cifar_ray.recipes": 2,
    "cifar_ray.metrics.trust": 2,
    "cifar_ray.training": 3,
    "cifar_ray.inference": 3,
    "cifar_ray.evaluation": 4,
    "cifar_ray.tuning": 4,
}
VERB_FLOOR = 5
VERBS_IN_PACKAGES = {"cifar_ray.store.__main__"}
DEPLOYMENTS_MAY_IMPORT = (
    "deployments",
    "cifar_ray.errors",
    "cifar_ray.config",
    "cifar_ray.config.api_keys",
    "cifar_ray.store",
    "cifar_ray.inference",
)
RAY_ALLOWED = (
    "cifar_ray.training.on_ray.ray_trainer",
    "cifar_ray.training.on_ray.controller_callbacks",
    "cifar_ray.training.on_ray.channel",
    "cifar_ray.training.on_ray.ingest",
    "cifar_ray.training.on_ray.worker_function",  # and workers
    "cifar_ray.evaluation.scoring_on_ray",
    "cifar_ray.inference.batch.classify_on_ray",
    "cifar_ray.tuning.algorithms",
    "cifar_ray.tuning.search",
    "cifar_ray.tuning.trial",
    "deployments",
)
MAX_LINES = 300


def modules() -> dict[str, Path]:
    found = {}
    for path in [*ROOT.glob("cifar_ray/**/*.py"), *ROOT.glob("deployments/**/*.py")]:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(path: Path) -> set[str]:
    """All imported modules, those inside functions too; `from package import module` counts as the module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names.update(sub if (sub := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names)
    return names


def floor(module: str) -> int:
    if module in VERBS_IN_PACKAGES:
        return VERB_FLOOR
    package = ".".join(module.split(".")[:2])
    return FLOORS.get(package, VERB_FLOOR)


def same_room(a: str, b: str) -> bool:
    return a.split(".")[:2] == b.split(".")[:2]


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("cifar_ray.")])
def test_a_module_imports_only_from_its_own_package_and_lower_floors(module: str) -> None:
    for imported in imports(MODULES[module]):
        if not imported.startswith("cifar_ray.") or imported == "cifar_ray.cli":
            assert imported != "cifar_ray.cli" or floor(module) == VERB_FLOOR, f"{module} imports cli"
            continue
        assert not imported.startswith("deployments"), f"{module} imports {imported}"
        allowed = same_room(module, imported) or floor(imported) < floor(module)
        assert allowed, f"{module} (floor {floor(module)}) imports {imported} (floor {floor(imported)})"
        if module.startswith("cifar_ray.evaluation"):
            assert not imported.startswith("cifar_ray.training"), f"{module} imports {imported}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("deployments")])
def test_deployments_see_only_the_store_and_inference(module: str) -> None:
    for imported in imports(MODULES[module]):
        if imported.startswith(("cifar_ray", "deployments")):
            assert imported.startswith(DEPLOYMENTS_MAY_IMPORT), f"{module} imports {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_ray_is_imported_only_where_the_design_allows_it(module: str) -> None:
    uses_ray = any(imported.split(".")[0] == "ray" for imported in imports(MODULES[module]))
    assert not uses_ray or module.startswith(RAY_ALLOWED), f"{module} imports ray"


@pytest.mark.parametrize("module", MODULES)
def test_a_file_stays_under_300_lines(module: str) -> None:
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= MAX_LINES
