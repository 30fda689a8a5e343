"""The rooms of the project, read from its imports: `python docs/rooms.py` prints them and draws docs/rooms.svg.

A room is a folder. The verbs at the root of `cifar_ray` and all `__main__` files are one room; `errors` and `client` are one each.
A module imports from its own room and from lower floors. `tests/test_architecture.py` holds that.
"""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERBS = "verbs"

# From the ground up. Rooms of one floor do not import each other.
FLOORS: tuple[dict[str, str], ...] = (
    {"cifar_ray.errors": "what can go wrong"},
    {
        "cifar_ray.config": "every setting",
        "cifar_ray.metrics": "accuracy, calibration, intervals",
        "cifar_ray.client": "asks a server",
        "deployments.pages": "HTML pages from templates",
    },
    {"cifar_ray.storage": "files, local or in an object store", "cifar_ray.data.decoding": "picture files, formats and colours"},
    {
        "cifar_ray.data.reading": "bytes of each picture",
        "cifar_ray.drift": "have requests changed?",
        "cifar_ray.captures": "requests and their reviews",
        "cifar_ray.jobs": "the queue of a server's jobs",
    },
    {"cifar_ray.data.listing": "which pictures, classes and splits"},
    {"cifar_ray.cluster": "Ray: connection, plan, failures, private parts"},
    {
        "cifar_ray.data": "pictures to arrays",
        "cifar_ray.models": "networks",
        "cifar_ray.recipes": "named settings",
        "cifar_ray.store": "models by name and version",
    },
    {
        "cifar_ray.data.survey": "what is in pictures before they become arrays",
        "cifar_ray.data.batches": "arrays to augmented batches",
        "cifar_ray.store.staging": "versions on trial, and their rules",
    },
    {"cifar_ray.inference.engines": "torch, OpenVINO, CUDA graphs"},
    {
        "cifar_ray.training.weights": "what training starts from",
        "cifar_ray.training.steps": "steps that do not wait for the host",
        "cifar_ray.training.records": "what a run leaves behind",
        "cifar_ray.inference": "pictures to probabilities",
    },
    {
        "cifar_ray.training.loop": "steps and epochs, no Ray",
        "cifar_ray.inference.batch": "many pictures to one table",
        "cifar_ray.inference.exporting": "to and from other programs",
        "deployments.predicting": "decode, batch, predict",
    },
    {
        "cifar_ray.training.probe": "a head on pretrained features",
        "deployments.staging": "which version answers, comparisons",
        "deployments.capturing": "keeps pictures of requests",
    },
    {
        "cifar_ray.training.on_ray": "loop and features on Ray's workers",
        "deployments.http": "routes, uploads, access, pages",
    },
    {
        "cifar_ray.training": "a job: config to saved model",
        "cifar_ray.evaluation.measures": "corruptions, cost, leakage, slices",
        "deployments.jobs": "routes for jobs",
    },
    {
        "cifar_ray.evaluation": "figures of a model or data set",
        "cifar_ray.tuning": "search for a better recipe",
        "deployments.protocols": "Open Inference Protocol, TorchServe",
    },
    {"cifar_ray.evaluation.label_check": "labels that are probably wrong", "deployments.replicas": "Ray Serve replicas"},
    {"cifar_ray.reports": "HTML pages and figures", "deployments": "the app of serve run"},
    {"cifar_ray.cli.arguments": "parsing, help, mistakes in one line", "cifar_ray.cli.output": "progress, tables, status lines"},
    {"cifar_ray.cli.commands": "subcommands of store, review, keys and cache"},
    {"cifar_ray.cli": "flags, errors"},
    {"cifar_ray.notebook": "fit, load, start_server"},
    {VERBS: "train, tune, evaluate, predict, serve, …"},
)
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

Graph = dict[str, set[str]]


def read_modules() -> dict[str, Path]:
    """Path of each module by its dotted name; a package goes by its own name."""
    found = {}
    for path in sorted([*ROOT.glob("cifar_ray/**/*.py"), *ROOT.glob("deployments/**/*.py")]):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def read_imports(path: Path, modules: dict[str, Path]) -> set[str]:
    """All imported modules, also those inside functions and those for types only; `from package import module` counts as the module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(sub if (sub := f"{node.module}.{alias.name}") in modules else node.module for alias in node.names)
    return names


def room_of(module: str, modules: dict[str, Path]) -> str:
    """The room of a module."""
    if module in FLOOR_OF and modules[module].name != "__init__.py":
        return module  # errors, client
    if module.endswith("__main__") or modules[module].parent == ROOT / "cifar_ray":
        return VERBS
    return ".".join(modules[module].parent.relative_to(ROOT).parts)


def import_graph(modules: dict[str, Path]) -> Graph:
    """The project's own modules that each module imports."""
    return {module: {name for name in read_imports(path, modules) if name in modules} - {module} for module, path in modules.items()}


def room_graph(modules: dict[str, Path]) -> Graph:
    """The rooms that each room imports."""
    graph: Graph = {}
    for module, imported in import_graph(modules).items():
        room = room_of(module, modules)
        graph.setdefault(room, set()).update(room_of(name, modules) for name in imported)
    return {room: rooms - {room} for room, rooms in graph.items()}


def find_circles(graph: Graph) -> list[set[str]]:
    """Groups of nodes that reach each other (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles: list[set[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for neighbour in sorted(graph.get(node, ())):
            if neighbour not in index:
                visit(neighbour)
                low[node] = min(low[node], low[neighbour])
            elif neighbour in stack:
                low[node] = min(low[node], index[neighbour])
        if low[node] == index[node]:
            group: set[str] = set()
            while node not in group:
                group.add(stack.pop())
            if len(group) > 1:
                circles.append(group)

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return circles


def files_by_room(modules: dict[str, Path]) -> dict[str, list[Path]]:
    """The files of each room, the highest floor first."""
    found: dict[str, list[Path]] = {}
    for module, path in modules.items():
        found.setdefault(room_of(module, modules), []).append(path)
    return dict(sorted(found.items(), key=lambda item: -FLOOR_OF.get(item[0], 0)))


def describe(modules: dict[str, Path]) -> str:
    """Counts, and a line for each room."""
    rooms, graph = files_by_room(modules), import_graph(modules)
    arrows = sum(map(len, room_graph(modules).values()))
    upward = [
        (module, name)
        for module, names in graph.items()
        for name in names
        if FLOOR_OF[room_of(name, modules)] > FLOOR_OF[room_of(module, modules)]
    ]
    lines = [f"{len(rooms)} rooms on {len(FLOORS)} floors, {len(modules)} files, {arrows} arrows between rooms"]
    lines.append(
        f"{len(find_circles(graph))} circles of files, {len(find_circles(room_graph(modules)))} of rooms, {len(upward)} arrows upwards"
    )
    for room, paths in rooms.items():
        length = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
        lines.append(f"{FLOOR_OF[room]:>3}  {room:28}{len(paths):>3} files {length:>6,} lines  {FLOORS[FLOOR_OF[room]][room]}")
    return "\n".join(lines)


def draw(modules: dict[str, Path]) -> str:
    """The floors as an SVG, the verbs on top: each room imports only from rooms below."""
    width, height, gap = 1120, 52, 10
    rooms = files_by_room(modules)
    parts = []
    for level, names in enumerate(reversed(FLOORS)):
        box = (width - gap * (len(names) - 1)) / len(names)
        for column, name in enumerate(names):
            left, top = column * (box + gap), level * (height + gap)
            fill = "#fdecea" if name.startswith("deployments") else "#eaf1f8"
            title = name.removeprefix("cifar_ray.").replace(".", "/")
            count = len(rooms.get(name, ()))
            parts.append(
                f'<rect x="{left:.0f}" y="{top}" width="{box:.0f}" height="{height}" rx="6" fill="{fill}" stroke="#7a8a99"/>'
                f'<text x="{left + 12:.0f}" y="{top + 21}" font-weight="bold">{escape(title)}</text>'
                f'<text x="{left + box - 12:.0f}" y="{top + 21}" text-anchor="end" fill="#607080">{count}</text>'
                f'<text x="{left + 12:.0f}" y="{top + 41}" fill="#405060">{escape(names[name])}</text>'
            )
    total = len(FLOORS) * (height + gap) - gap
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -8 {width + 16} {total + 16}" font-family="sans-serif" font-size="15">\n'
        f'<rect x="-8" y="-8" width="{width + 16}" height="{total + 16}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    found = read_modules()
    print(describe(found))
    (ROOT / "docs/rooms.svg").write_text(draw(found), encoding="utf-8")
