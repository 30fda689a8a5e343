"""Does ASHA save epochs, and does tuning recover from a bad recipe? On CIFAR-10 as JPEG files, made smaller to run in minutes.

    python benchmarks/tuning.py prepare CIFAR_FOLDER WORK      # subsets, from CIFAR_FOLDER/{train,test}/<class>/*.jpg
    python benchmarks/tuning.py run WORK --minutes 5           # the unfinished parts of: ASHA and random search, repair, comparison on test
    python benchmarks/tuning.py table WORK                     # all results as Markdown

`run` stops after --minutes; run it again to resume. ASHA: random search and TPE with early stopping, compared with random search without
early stopping over as many epochs. Repair: a recipe that is wrong on purpose is tuned, then compared on test images with the default
recipe.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import statistics
import sys
from pathlib import Path

import yaml

MAX_EPOCHS = {"asha": 12, "repair": 8}
TRIALS = {"asha": 24, "repair": 20}
# Learning rates ten times too high, no augmentation at all.
WRONG = {"small_cnn": ["--optimizer.lr", "0.03"], "airbench94": ["--optimizer.lr", "2.4"]}
NO_AUGMENTATION = ["--augmentation.flip", "none", "--augmentation.translate-px", "0"]
REPAIR_SPACE = {
    "optimizer.lr": {"loguniform": [0.024, 2.4]},
    "label_smoothing": {"uniform": [0.0, 0.3]},
    "augmentation.flip": {"choice": ["none", "random", "alternating"]},
    "augmentation.translate_px": {"randint": [0, 4]},
}
IMAGE_SIZE_PX = 16  # a quarter of the work
SEEDS = {"asha": 3, "compare": 3}
SIZES = {"asha": (3000, 2000, 2000), "repair": (5000, 2000, 10000)}


def prepare(source: Path, work: Path) -> None:
    """Lays out subsets as folders: training and validation images from `train`, test images from `test`."""
    for name, sizes in SIZES.items():
        for split, origin, start, count in (
            ("train", "train", 0, sizes[0]),
            ("val", "train", sizes[0], sizes[1]),
            ("test", "test", 0, sizes[2]),
        ):
            for folder in sorted((source / origin).iterdir()):
                target = work / name / split / folder.name
                target.mkdir(parents=True, exist_ok=True)
                for image in sorted(folder.iterdir())[start // 10 : (start + count) // 10]:
                    shutil.copy(image, target / image.name)


def fixed_flags(work: Path, kind: str) -> list[str]:
    """Flags for the recipe, the data and the length of a training."""
    recipe = {"asha": ["--recipe", "small_cnn"], "repair": ["--recipe", "airbench94", "--batch-size", "250"]}[kind]
    data = ["--dataset", "folder", "--data-dir", str(work / kind), "--storage", str(work / "storage")]
    return [*recipe, *data, "--image-size", str(IMAGE_SIZE_PX), "--epochs", str(MAX_EPOCHS[kind]), "--test-time-augmentation", "none"]


def search(work: Path, name: str, trials: int, flags: list[str]) -> dict:
    """Start or resume a search until it has `trials` trials; return its record."""
    from cifar_ray.tune import main as tune

    state = work / "storage" / "tunings" / name / "state.json"
    known = json.loads(state.read_text()) if state.exists() else {"ended": False}
    if not known["ended"] or known["num_samples"] < trials:
        tune([*flags, "--num-samples", str(trials), "--name", name])
    return json.loads(state.read_text())


def epochs_run(record: dict) -> int:
    """Number of epochs of all trials together."""
    return sum(trial["epochs"][-1]["epoch"] for trial in record["trials"] if trial["epochs"])


def best_accuracy(record: dict) -> float:
    """Validation accuracy of the best epoch of the best trial, 0–1."""
    return max(report["val_accuracy"] for trial in record["trials"] if trial["status"] != "diverged" for report in trial["epochs"])


def asha(work: Path, kind: str, seed: int) -> None:
    """Run a search with ASHA, and random search without ASHA over at least as many epochs; both start with the wrong learning rate."""
    flags = [*fixed_flags(work, "asha"), *WRONG["small_cnn"], "--seed", str(seed)]
    flags += ["--confirm", "0"]
    record = search(work, f"{kind}-{seed}", TRIALS["asha"], [*flags, "--search", kind])
    trials = max(1, math.ceil(epochs_run(record) / MAX_EPOCHS["asha"]))
    search(work, f"all-{seed}", trials, [*flags, "--search", "random", "--scheduler", "none"])


def repair(work: Path) -> None:
    """Tunes the recipe that is wrong on purpose."""
    (work / "space.yaml").write_text(yaml.safe_dump(REPAIR_SPACE))
    options = ["--space", str(work / "space.yaml")]
    search(work, "repair", TRIALS["repair"], [*fixed_flags(work, "repair"), *WRONG["airbench94"], *NO_AUGMENTATION, *options])


def compare(work: Path, seed: int) -> None:
    """Train the wrong, the tuned and the default recipe equally long; save their metrics on the test images."""
    import torch

    from cifar_ray.cli.training_flags import parse_train_command
    from cifar_ray.data import load_splits
    from cifar_ray.data.batches.shares import Shard
    from cifar_ray.training.loop.fit import fit

    recipes = {
        "wrong": [*fixed_flags(work, "repair"), *WRONG["airbench94"], *NO_AUGMENTATION],
        "tuned": ["--config", str(work / "storage" / "tunings" / "repair" / "best.yaml")],
        "default": fixed_flags(work, "repair"),
    }
    for name, flags in recipes.items():
        result_file = work / f"compare-{name}-{seed}.json"
        if result_file.exists():
            continue
        config = parse_train_command([*flags, "--seed", str(seed)], "train")
        result = fit(
            config,
            load_splits(config),
            device=torch.device("cpu"),
            shard=Shard(),
            on_step=lambda *_: None,
            on_epoch=lambda *_: None,
        )
        result_file.write_text(json.dumps(result.metrics | {"seconds": result.train_seconds}))
        print(name, seed, result.metrics)


def run(work: Path, minutes: float) -> None:
    """Run all unfinished parts in turn, on one Ray cluster of this machine."""
    import ray

    os.environ["CIFAR_RAY_CACHE"] = str(work / "cache")
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    signal.alarm(int(minutes * 60))
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        for seed in range(SEEDS["asha"]):
            asha(work, "random", seed)
        repair(work)
        for seed in range(SEEDS["compare"]):
            compare(work, seed)
        for seed in range(SEEDS["asha"]):
            asha(work, "optuna", seed)
    except KeyboardInterrupt:
        sys.exit("not at its end; the same command goes on")
    finally:
        ray.shutdown()


def spread(values: list[float]) -> str:
    """Mean and standard deviation, as per cent."""
    deviation = f" (sd {statistics.stdev(values) * 100:.2f})" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f} %{deviation}"


def asha_table(tunings: Path, kind: str) -> None:
    """Print one line per seed. Random search is deterministic, so its first trials are those of a search with fewer trials."""
    print(f"ASHA, `--search {kind}`:\n\n| seed | trials | epochs run of all | best | random: trials | epochs | best | overhead a trial |")
    print("|---|---|---|---|---|---|---|---|")
    gains, shares = [], []
    for seed in range(SEEDS["asha"]):
        paths = [tunings / f"{name}-{seed}" / "state.json" for name in (kind, "all")]
        if not all(path.exists() for path in paths):
            continue
        one, two = (json.loads(path.read_text()) for path in paths)
        if not (one["ended"] and two["ended"]):
            continue
        whole, epochs = one["num_samples"] * one["max_epochs"], epochs_run(one)
        two["trials"] = two["trials"][: max(1, round(epochs / one["max_epochs"]))]
        shares.append(epochs / whole)
        gains.append(best_accuracy(one) - best_accuracy(two))
        busy_s = sum(report["seconds"] for trial in one["trials"] for report in trial["epochs"])
        overhead_s = (2 * one["elapsed_s"] - busy_s) / len(one["trials"])
        print(
            f"| {seed} | {len(one['trials'])} | {epochs} of {whole} ({100 * (shares[-1]):.0f} %) | {100 * best_accuracy(one):.2f} % "
            f"| {len(two['trials'])} | {epochs_run(two)} | {100 * best_accuracy(two):.2f} % | {overhead_s:.1f} s |"
        )
    if gains:
        print(f"\nASHA − random: {spread(gains)}, n = {len(gains)}; epochs run: {spread(shares)} of all.\n")


def table(work: Path) -> None:
    """Prints all results."""
    tunings = work / "storage" / "tunings"
    for kind in ("random", "optuna"):
        asha_table(tunings, kind)
    print("| recipe | test accuracy | n |\n|---|---|---|")
    for name in ("wrong", "tuned", "default"):
        values = [json.loads(path.read_text())["test_accuracy"] for path in sorted(work.glob(f"compare-{name}-*.json"))]
        if values:
            print(f"| {name} | {spread(values)} | {len(values)} |")
    state = tunings / "repair" / "state.json"
    if state.exists():
        record = json.loads(state.read_text())
        whole = record["num_samples"] * record["max_epochs"]
        print(f"\nRepair: {len(record['trials'])} trials, {epochs_run(record)} of {whole} epochs, {record['elapsed_s'] / 60:.1f} minutes.")


def main() -> None:
    """Run one part of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=["prepare", "run", "table"])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--minutes", type=float, default=60.0)
    arguments = parser.parse_args()
    folders = [folder.absolute() for folder in arguments.folders]
    if arguments.piece == "run":
        run(*folders, minutes=arguments.minutes)
    else:
        {"prepare": prepare, "table": table}[arguments.piece](*folders)


if __name__ == "__main__":
    main()
