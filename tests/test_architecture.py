"""Holds the rooms and floors of docs/design.md by reading the imports; docs/rooms.py prints them."""

import ast
import re
from collections import Counter

import pytest

from docs import rooms
from docs.rooms import FLOOR_OF, ROOT, VERBS, find_circles, import_graph, read_imports, room_graph, room_of

MODULES = rooms.read_modules()
GRAPH = import_graph(MODULES)

MAX_LINES, MAX_VERB_LINES, MAX_FILES = 300, 60, 14
SEVERAL_OF_ONE_NAME = {"__init__", "__main__"}
RAY_ALLOWED = (
    "cifar_ray.cluster",
    "cifar_ray.training.on_ray",
    "cifar_ray.evaluation.scoring_on_ray",
    "cifar_ray.inference.batch.classify_on_ray",
    "cifar_ray.tuning.algorithms",
    "cifar_ray.tuning.search",
    "cifar_ray.tuning.trial",
    "deployments.__init__",
    "deployments.application",
    "deployments.replicas",
)
# What starts Ray, or asks it for resources
STARTS_RAY = re.compile(r"\bray\.(init|shutdown|cluster_resources|available_resources|nodes)\b")
MAY_START_RAY = ("cifar_ray.cluster",)
PRIVATE = re.compile(r"\b(ray|torch)(\.[a-z0-9_]+)*\._[a-z]\w*|\bray\.core\.generated|\bray\.autoscaler\.v2|\binternal_kv\b|\b_base_exc\b")
PRIVATE_MODULE = "cifar_ray.cluster.private"
DEPLOYMENTS_MAY_IMPORT = (
    "deployments",
    "cifar_ray.errors",
    "cifar_ray.config",
    "cifar_ray.metrics",
    "cifar_ray.store",
    "cifar_ray.captures",
    "cifar_ray.drift",
    "cifar_ray.jobs",
    "cifar_ray.storage",
    "cifar_ray.inference",
)


def name_in_list(module: str) -> str:
    return f"{module}.__init__" if MODULES[module].name == "__init__.py" else module


def test_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{rooms.describe(MODULES)}")
    assert {room_of(module, MODULES) for module in MODULES} == set(FLOOR_OF), "a room is missing in docs/rooms.py, or empty there"


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_absolute(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]


def test_no_circle_of_files() -> None:
    assert find_circles(GRAPH) == []


def test_no_circle_of_rooms() -> None:
    assert find_circles(room_graph(MODULES)) == []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_own_room_and_lower_floors(module: str) -> None:
    room = room_of(module, MODULES)
    for imported in GRAPH[module]:
        other = room_of(imported, MODULES)
        assert other == room or FLOOR_OF[other] < FLOOR_OF[room], f"{module} in {room} imports {imported} in {other}"


def test_a_circle_and_an_arrow_upwards_would_be_found() -> None:
    assert find_circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [{"a", "b", "c"}]
    assert FLOOR_OF["cifar_ray.cli"] > FLOOR_OF["cifar_ray.store"]


@pytest.mark.parametrize("module", [name for name in MODULES if room_of(name, MODULES) == VERBS and name != "cifar_ray"])
def test_verbs_do_not_import_each_other(module: str) -> None:
    assert not [name for name in GRAPH[module] if room_of(name, MODULES) == VERBS]


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("deployments")])
def test_deployments_see_only_what_serving_needs(module: str) -> None:
    for imported in GRAPH[module]:
        assert imported.startswith(DEPLOYMENTS_MAY_IMPORT), f"{module} imports {imported}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("cifar_ray")])
def test_the_package_does_not_import_the_server(module: str) -> None:
    assert not [name for name in GRAPH[module] if name.startswith("deployments")]


@pytest.mark.parametrize("module", MODULES)
def test_ray_is_imported_only_where_the_design_allows_it(module: str) -> None:
    uses_ray = any(imported.split(".")[0] == "ray" for imported in read_imports(MODULES[module], MODULES))
    assert not uses_ray or name_in_list(module).startswith(RAY_ALLOWED), f"{module} imports ray"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("cifar_ray")])
def test_only_the_cluster_room_starts_ray_or_asks_it_for_resources(module: str) -> None:
    found = STARTS_RAY.search(code_of(module))
    assert not found or module.startswith(MAY_START_RAY), f"{module}: {found[0]}"


@pytest.mark.parametrize("module", [name for name in MODULES if name != PRIVATE_MODULE])
def test_private_parts_of_ray_and_torch_are_used_in_one_module(module: str) -> None:
    found = PRIVATE.search(code_of(module))
    assert not found, f"{module}: {found[0]}"


@pytest.mark.parametrize("module", MODULES)
def test_a_file_stays_short(module: str) -> None:
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    verb = room_of(module, MODULES) == VERBS
    assert lines <= (MAX_VERB_LINES if verb else MAX_LINES)


def test_a_room_has_few_files() -> None:
    too_full = {room: len(paths) for room, paths in rooms.files_by_room(MODULES).items() if room != VERBS and len(paths) > MAX_FILES}
    assert too_full == {}


def test_one_name_stands_for_one_thing() -> None:
    count = Counter(path.stem for path in MODULES.values() if path.stem not in SEVERAL_OF_ONE_NAME)
    assert [name for name, times in count.items() if times > 1] == []


def test_the_drawing_is_current() -> None:
    drawn = (ROOT / "docs/rooms.svg").read_text(encoding="utf-8")
    assert drawn == rooms.draw(MODULES), "run: python docs/rooms.py"


def code_of(module: str) -> str:
    """The code of a module without comments and docstrings."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
