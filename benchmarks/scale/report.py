"""Tables and picture of docs/scale.md, computed from results/scale.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import serving
from model import CLUSTERS, SMALLEST_GRADIENTS, Loopback, Network

from cifar_ray.recipes import list_recipes

DOCS = Path(__file__).parents[2] / "docs"
WORKERS = (8, 64, 512)
STEPPED = ("small_cnn", "airbench94")
STYLES = ("-", "--", ":")
DRAWN = ("airbench94", "resnet18", "wide_resnet28_10", "resnet50_finetune")
Measured = dict[str, list[dict[str, Any]]]


def write(measured: Measured, check: bool) -> None:
    """Write the tables between their markers and draw the picture; with `check`, only report whether the page is outdated."""
    page = DOCS / "scale.md"
    before = page.read_text()
    after = filled(before, measured)
    if not check:
        page.write_text(after)
        draw(measured, DOCS / "scale.png")
        return
    counted = {row["recipe"]: row["parameters"] for row in measured["networks"]}
    if counted != {name: recipe.parameters for name, recipe in list_recipes().items()}:
        raise SystemExit("results/scale.json counts other recipes: python benchmarks/scale measure --only networks")
    if before != after:
        raise SystemExit("docs/scale.md is not what results/scale.json gives: python benchmarks/scale report")


def filled(text: str, measured: Measured) -> str:
    """The page with recomputed tables; the rest is unchanged."""
    for name, table in tables(measured).items():
        text, found = re.subn(rf"(<!-- {name} -->\n).*?(<!-- end -->)", rf"\g<1>\n{table}\n\n\2", text, flags=re.DOTALL)
        assert found == 1, f"docs/scale.md has {found} places for the table {name}"
    return text


def tables(measured: Measured) -> dict[str, str]:
    """Tables by name, as Markdown."""
    networks = [Network(**row) for row in measured["networks"] if row["recipe"] != "digits"]  # small_cnn on a few hundred images
    return {
        "all-reduce": _all_reduce(measured["all_reduce"]),
        "fit": _fit(measured["all_reduce"]),
        "steps": _steps([row for recipe in STEPPED for row in measured[recipe]], Loopback.fitted(measured["all_reduce"])),
        "networks": _networks(networks),
        "fixed": _fixed(networks),
        "grown": _grown(networks),
        "serving": _serving(),
    }


def _all_reduce(rows: Sequence[dict[str, Any]]) -> str:
    loopback = Loopback.fitted(rows)
    lines = []
    for size in sorted({row["bytes"] for row in rows}):
        found = [row for row in rows if row["bytes"] == size]
        times = [f"{_ms(row['median_s'])} ({_ms(row['low_s'])}–{_ms(row['high_s'])})" for row in found]
        is_fitted = size >= SMALLEST_GRADIENTS
        fitted = " / ".join(_ms(loopback.all_reduce_s(row["workers"], size)) for row in found) if is_fitted else "–"
        sent = " / ".join(f"{row['loopback_bytes'] / size:.2f}" for row in found) if is_fitted else "–"
        lines.append([_bytes(size), *times, fitted, sent])
    return _table(["gradients", "2 workers, ms", "4 workers, ms", "8 workers, ms", "fitted, ms", "bytes sent ÷ gradients"], lines)


def _fit(rows: Sequence[dict[str, Any]]) -> str:
    loopback = Loopback.fitted(rows)
    fitted = [row for row in rows if row["bytes"] >= SMALLEST_GRADIENTS]
    errors = sorted(abs(loopback.all_reduce_s(row["workers"], row["bytes"]) / row["median_s"] - 1) for row in fitted)
    calls = ", ".join(f"{_ms(seconds)} ms for {workers}" for workers, seconds in loopback.call_s.items())
    return (
        f"```text\nseconds = call + 2 (N − 1) × bytes / {loopback.bytes_per_s / 1e9:.2f} GB/s        call: {calls} workers\n```\n\n"
        f"The fit has a median error of {100 * errors[len(errors) // 2]:.0f} % "
        f"and a maximum error of {100 * errors[-1]:.0f} % ({len(fitted)} points)."
    )


def _steps(rows: Sequence[dict[str, Any]], loopback: Loopback) -> str:
    lines = []
    for row in rows:
        alone, together = row["alone"], row["together"]
        predicted = alone["median_s"] + loopback.all_reduce_s(row["workers"], row["bytes"]) if row["workers"] > 1 else alone["median_s"]
        lines.append(
            [
                row["recipe"],
                row["workers"],
                _bytes(row["bytes"]) if row["workers"] > 1 else "–",
                row["calls"],
                *(f"{_ms(times['median_s'])} ({_ms(times['low_s'])}–{_ms(times['high_s'])})" for times in (alone, together)),
                _ms(row["exchanged_s"]),
                f"{_ms(predicted)} ({100 * (predicted / together['median_s'] - 1):+.0f} %)",
            ]
        )
    heads = [
        *("recipe", "workers", "gradients per step", "all-reduces per step", "without DDP, ms"),
        *("with DDP, ms", "in all-reduce, ms", "without DDP + fit, ms"),
    ]
    return _table(heads, lines)


def _networks(networks: Sequence[Network]) -> str:
    lines = [
        [
            f"`{network.recipe}`",
            _bytes(4 * network.parameters),
            " + ".join(f"{size / 1e6:.1f}" for size in network.bucket_bytes),
            f"{network.kernels} + {network.optimizer_kernels}",
            f"{network.image_operations * network.batch_size / 1e12:.2f} + {network.optimizer_operations / 1e12:.3f}",
            *(f"{1000 * network.one_gpu_s(cluster, network.batch_size):.1f}" for cluster in CLUSTERS[1:]),
            *(_time(network.training_s(cluster)) for cluster in CLUSTERS[1:]),
        ]
        for network in networks
    ]
    heads = [
        *("recipe", "gradients", "DDP's buckets, MB", "kernels per step", "TFLOP per step"),
        *("step on H100, ms", "step on L4, ms", "training on H100", "training on L4"),
    ]
    return _table(heads, lines)


def _fixed(networks: Sequence[Network]) -> str:
    lines = []
    for network in networks:
        bounds = ["{} ({}–{})".format(*(network.pays_up_to(cluster.at(factor)) for factor in (1, 2, 0.5))) for cluster in CLUSTERS]
        efficiencies = [_shares(network.fixed_batch(cluster, workers) for workers in WORKERS) for cluster in CLUSTERS]
        lines.append([f"`{network.recipe}`, {network.batch_size:,}", *efficiencies, *bounds])
    return _table(
        ["recipe, batch", *(cluster.name for cluster in CLUSTERS), *(f"GPUs that pay: {cluster.name}" for cluster in CLUSTERS)], lines
    )


def _grown(networks: Sequence[Network]) -> str:
    lines = [
        [f"`{network.recipe}`", *(_shares(network.grown_batch(cluster, workers) for workers in WORKERS) for cluster in CLUSTERS)]
        for network in networks
    ]
    return _table(["recipe", *(cluster.name for cluster in CLUSTERS)], lines)


def _serving() -> str:
    lines = []
    for rate in (1e3, 1e5, 1e6):
        fleet = serving.Fleet(rate)
        lines.append(
            [
                f"{rate:,.0f}",
                fleet.ingress_replicas,
                fleet.model_replicas,
                fleet.nodes,
                fleet.nodes_uncoalesced,
                f"{fleet.haproxy_cores:.2g}",
                f"{fleet.gbit_per_s:.2g}",
            ]
        )
    heads = [
        "requests/s",
        "ingress replicas",
        "model replicas",
        "nodes",
        "nodes, if calls hold one request",
        "HAProxy, cores",
        "incoming Gbit/s",
    ]
    return _table(heads, lines)


def draw(measured: Measured, path: Path) -> None:
    """Draw the measured times on the left and the predictions on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, *predicted = figure.subplots(1, 3)
    loopback = Loopback.fitted(measured["all_reduce"])
    for workers, color in zip((2, 4, 8), ("C0", "C1", "C2"), strict=True):
        rows = [row for row in measured["all_reduce"] if row["workers"] == workers]
        sizes = [row["bytes"] for row in rows]
        left.plot(sizes, [1000 * row["median_s"] for row in rows], "o", color=color, label=f"{workers} workers, measured")
        large = [size for size in sizes if size >= SMALLEST_GRADIENTS]
        left.plot(large, [1000 * loopback.all_reduce_s(workers, size) for size in large], "-", color=color)
    left.set(xscale="log", yscale="log", xlabel="bytes", ylabel="ms", title="Measured: all-reduce on one machine\n(lines: fitted)")
    left.legend(frameon=False)
    counts = [2**power for power in range(10)]
    networks = {row["recipe"]: Network(**row) for row in measured["networks"]}
    for axes, title in zip(predicted, ("the recipe's batch, shared", "the recipe's batch on each"), strict=True):
        for number, name in enumerate(DRAWN):
            efficiency = networks[name].fixed_batch if "shared" in title else networks[name].grown_batch
            for cluster, style in zip(CLUSTERS, STYLES, strict=True):
                values = [efficiency(cluster, workers) for workers in counts]
                axes.plot(counts, [float("nan") if value is None else 100 * value for value in values], style, color=f"C{number}")
        axes.set(xscale="log", ylim=(0, 104), xlabel="GPUs", ylabel="efficiency, %", title=f"Predicted: {title}")
        axes.set_xticks(counts, counts)
        axes.minorticks_off()
    axes = predicted[0]
    names = [axes.plot([], [], "-", color=f"C{number}", label=name)[0] for number, name in enumerate(DRAWN)]
    axes.legend(handles=names, frameon=False, loc="upper right")
    clusters = [axes.plot([], [], style, color="0.3", label=cluster.name)[0] for cluster, style in zip(CLUSTERS, STYLES, strict=True)]
    figure.legend(handles=clusters, frameon=False, loc="outside lower right", ncols=len(clusters))
    figure.savefig(path, dpi=80, metadata={"Software": None})


def _table(heads: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _shares(values: Iterable[float | None]) -> str:
    return " / ".join("–" if value is None else f"{100 * value:.0f} %" for value in values)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.{0 if seconds >= 0.1 else 1 if seconds >= 0.01 else 2}f}"


def _bytes(number: float) -> str:
    return f"{number / 1e6:.1f} MB" if number >= 1e5 else f"{number:,} B"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
