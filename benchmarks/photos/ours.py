"""Our `train` on folders of photographs: duration of the command and accuracy, also compared with a script written by hand."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from pathlib import Path

import folders
from commands import Trained, run, train
from records import Records
from weights import export_weights

BY_HAND = Path(__file__).parent / "by_hand.py"
SHARES = {"train": 0.6, "val": 0.1, "test": 0.3}


def measure_probe(options: argparse.Namespace, work: Path, records: Records) -> None:
    """Train with an empty cache, then with a filled one, once per seed; accuracy on val/, which a probe does not use to choose anything."""
    splits = folders.given_splits(options.folder, options.limit)
    data = folders.link(splits, work / options.folder.name)
    for seed in range(options.rounds):
        with tempfile.TemporaryDirectory(dir=work) as cache:
            for name in ("first run", "second run"):
                trained = train(data, work, Path(cache), "--seed", str(seed), *shlex.split(options.flags))
                _add(records, f"probe {options.folder.name}", _row(name, options), trained, "val")


def measure_folds(options: argparse.Namespace, work: Path, records: Records) -> None:
    """Cross-validation: ours with one and four views, and the script written by hand, on the same folds."""
    files = folders.pictures(options.folder, options.limit)
    part, folds = f"folds {options.folder.name}", 5
    weights = export_weights(work)
    for number in range(min(options.rounds, folds)):
        parts = folders.fold(files, number, folds)
        data = folders.link(parts, work / f"fold-{number}")
        # With CI=true, openvino.convert_model does not report its use to a server.
        finished = run([sys.executable, str(BY_HAND), str(data), str(weights)], {"CI": "true"})
        by_hand = float(finished.lines[-1][1])
        records.add(part, "by hand: OpenVINO fp32, LogisticRegression", finished.seconds, by_hand, folders.count(parts, "val"))
        with tempfile.TemporaryDirectory(dir=work) as cache:
            for name in ("first run", "second run"):
                one_view = train(data, work, Path(cache), *shlex.split(options.flags))
                difference = 100 * (one_view.metrics["val_accuracy"] - by_hand)
                _add(records, part, _row(name, options), one_view, "val", **{"points more than by hand": difference})
        with tempfile.TemporaryDirectory(dir=work) as cache:
            four = train(data, work, Path(cache), "--views", "4", *shlex.split(options.flags))
            difference = 100 * (four.metrics["val_accuracy"] - one_view.metrics["val_accuracy"])
            _add(records, part, _row("first run, --views 4", options), four, "val", **{"points more than one view": difference})


def measure_budget(options: argparse.Namespace, work: Path, records: Records) -> None:
    """Probe, then fine-tuning within a time budget; val/ selects the better model, and test/ is only used to measure it."""
    files = folders.pictures(options.folder, options.limit)
    part = f"budget {options.folder.name}"
    for seed in range(options.rounds):
        parts = folders.split(files, SHARES, seed)
        data = folders.link(parts, work / f"split-{seed}")
        with tempfile.TemporaryDirectory(dir=work) as cache:
            flags = ("--time-budget", options.time_budget, "--seed", str(seed), *shlex.split(options.flags))
            trained = train(data, work, Path(cache), *flags)
        probe = trained.metrics.get("probe_test_accuracy", trained.metrics["test_accuracy"])
        tuned_kept = "probe_test_accuracy" in trained.metrics
        gain = 100 * (trained.metrics["test_accuracy"] - probe)
        more = {"probe %": 100 * probe, "points more than the probe": gain, "fine-tuned kept": float(tuned_kept)}
        _add(records, part, _row(f"--time-budget {options.time_budget}", options), trained, "test", **more)


def _add(records: Records, part: str, row: str, trained: Trained, split: str, **more: float) -> None:
    accuracy, pictures = trained.metrics[f"{split}_accuracy"], trained.counts[split]
    figures = {
        "start-up s": trained.start_up_s,
        "without start-up s": trained.finished.seconds - trained.start_up_s,
        "correct": float(round(accuracy * pictures)),
        "peak RSS MB": trained.finished.peak_rss_bytes / 1e6,
    }
    records.add(part, row, trained.finished.seconds, accuracy, pictures, **(figures | more))


def _row(name: str, options: argparse.Namespace) -> str:
    return f"ours, {name} {options.flags}".strip()
