"""How accurate is each recipe on CIFAR-10, and how long does it take, beside the published figure?

    python benchmarks/recipes.py run --data-dir DIR [--recipes small_cnn cnn6] [--seeds 1] [--folder FOLDER]
    python benchmarks/recipes.py report

DIR holds the official files of CIFAR-10. `run` trains on all 50,000 images, once per recipe and seed, and appends a row to
results/recipes.jsonl. Rows that are there are not repeated, and a training that was interrupted continues from FOLDER. `report` writes the
table of all rows to results/recipes.md and draws docs/recipes.png: accuracy against training time.
"""

from __future__ import annotations

import json
import platform
import statistics
from pathlib import Path
from typing import Any

import torch
import tyro

from cifar_ray.cli.output.training_progress import ConsoleProgress
from cifar_ray.cluster.process import prepare_process, usable_cores
from cifar_ray.config import TrainConfig, parse_config
from cifar_ray.data import load_splits
from cifar_ray.recipes import get_recipe
from cifar_ray.training import job

RESULTS = Path(__file__).parent / "results" / "recipes.jsonl"
TABLE = RESULTS.with_suffix(".md")
HEAD = """# Recipes on CIFAR-10

`python benchmarks/recipes.py run --data-dir DIR --recipes NAME`, then `report`, which writes this page. Original pixels (the official
files), all 50,000 training images, no validation images, the last weights; accuracy on the 10,000 test images, whose standard error is
0.2–0.5 points. *Training steps* leaves out the start, evaluation and saving. Published figures are those that the recipe's docstring
names. With several seeds: mean (range); a training that was paused has no time.

"""
PICTURE = Path(__file__).parents[1] / "docs" / "recipes.png"
# Test accuracy in % as published, averaged over views where the source does so
PUBLISHED = {
    "airbench94": 94.0,
    "airbench96": 96.0,
    "resnet9_onecycle": 94.1,
    "cnn_steplr": 84.1,
    "vgg3": 90.5,
    "wide_resnet28_10": 97.4,
}
MINUTES = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)  # on the axis of the picture
TARGETS = PUBLISHED | {"resnet18": 95.5, "cnn_steplr": 86.0, "cnn6": 90.0, "vgg3": 91.0, "lite0_finetune": 95.0}


def run(data_dir: str, recipes: tuple[str, ...] = ("airbench94", "small_cnn"), seeds: int = 1, folder: str = "recipes") -> None:
    """Train and append rows.

    Args:
        data_dir: folder of the official files.
        recipes: names of recipes.
        seeds: number of seeds, from 0.
        folder: folder of runs and models.
    """
    prepare_process()
    known = {(row["recipe"], row["seed"], row["device"]) for row in rows()}
    for name in recipes:
        for seed in range(seeds):
            if (name, seed, device()) not in known:
                append(measure(name, seed, data_dir, folder))


def measure(name: str, seed: int, data_dir: str, folder: str) -> dict[str, Any]:
    """The row of one training."""
    values = {"dataset": "cifar10", "data_dir": data_dir, "val_fraction": 0.0, "seed": seed, "storage": folder, "promote": "never"}
    config = parse_config(TrainConfig, get_recipe(name).model_dump() | values | {"name": f"{name}-{seed}", "save_as": name})
    splits = load_splits(config)
    made = job.run(job.with_name(config, splits), splits, ConsoleProgress(config.epochs, len(splits.train))).run
    return {
        "recipe": name,
        "seed": seed,
        "epochs": config.epochs,
        "test": 100 * made.result.metrics["test_accuracy"],
        "views": 100 * made.result.metrics["test_accuracy_tta"] if "test_accuracy_tta" in made.result.metrics else None,
        "seconds": sum(len(splits.train) / report.images_per_s for report in made.history),
        "device": device(),
        "torch": torch.__version__.partition("+")[0],
    }


def device() -> str:
    """The GPU, or the processor with the number of its cores."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    )
    return f"{names[0] if names else platform.machine()}, {usable_cores()} cores"


def rows() -> list[dict[str, Any]]:
    """All measured rows."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def append(row: dict[str, Any]) -> None:
    """Write one row to the end of the file."""
    with RESULTS.open("a") as file:
        file.write(json.dumps(row) + "\n")


def report() -> None:
    """Write the table and draw the picture."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows():
        groups.setdefault((row["recipe"], row["device"]), []).append(row)
    lines = ["| recipe | epochs | device | n | test | views averaged | published | target | training steps, s |", "|" + "---|" * 9]
    for (name, place), found in sorted(groups.items()):
        test, views = spread([row["test"] for row in found]), spread([row["views"] for row in found if row["views"] is not None])
        known = [f"{table[name]:.1f} %" if name in table else "–" for table in (PUBLISHED, TARGETS)]
        seconds = mean_seconds(found)
        lines += [f"| `{name}` | {found[0]['epochs']} | {place} | {len(found)} | {test} | {views} | {' | '.join(known)} | {seconds:,.0f} |"]
    TABLE.write_text(HEAD + "\n".join(lines) + "\n")
    print("\n".join(lines))
    draw(groups)


def mean_seconds(found: list[dict[str, Any]]) -> float:
    """Mean time of the training steps; a training that was paused has none."""
    return statistics.mean(row["seconds"] for row in found if row["seconds"] is not None)


def spread(values: list[float]) -> str:
    """Mean with minimum and maximum."""
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.2f} %"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f}–{max(values):.2f})"


def draw(groups: dict[tuple[str, str], list[dict[str, Any]]]) -> None:
    """Accuracy against training time: one point for each recipe and device, and a short line at the published accuracy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    colours = {place: f"C{number}" for number, place in enumerate(sorted({place for _, place in groups}))}
    for (name, place), found in groups.items():
        best = [row["views"] if row["views"] is not None else row["test"] for row in found]
        minutes, accuracy = mean_seconds(found) / 60, statistics.mean(best)
        axes.plot(minutes, accuracy, "o", color=colours[place])
        axes.annotate(name, (minutes, accuracy), textcoords="offset points", xytext=(0, -15), ha="center", fontsize=9)
        if name in PUBLISHED:
            axes.plot([minutes / 1.15, minutes * 1.15], [PUBLISHED[name]] * 2, color="black", linewidth=1.5)
    for place, colour in colours.items():
        axes.plot([], [], "o", color=colour, label=place)
    axes.plot([], [], color="black", linewidth=1.5, label="published")
    axes.set(
        xscale="log",
        xlabel="time of the training steps, minutes",
        ylabel="test accuracy, %",
        title="CIFAR-10, original pixels, all 50,000 images",
    )
    axes.margins(0.12)
    lowest, highest = axes.get_xlim()
    axes.set_xticks([minutes for minutes in MINUTES if lowest <= minutes <= highest], minor=False)
    axes.xaxis.set_major_formatter(lambda minutes, _: f"{minutes:g}")
    axes.xaxis.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(PICTURE)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"run": run, "report": report})
