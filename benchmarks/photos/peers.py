"""Compare our `train` with fine-tuning by timm's train.py and by fastai, each in its own virtual environment."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import folders
from commands import Finished, run, train
from records import Records
from weights import MODEL, export_weights

NAMES = ("timm", "fastai")
_TORCH = ("torch==2.15.0", "torchvision==0.29.2")
_PACKAGES = {"timm": ("timm==1.0.31", *_TORCH), "fastai": ("fastai==2.8.12", "timm==1.0.31", *_TORCH)}
_FASTAI_SCRIPT = Path(__file__).parent / "peers" / "fastai_finetune.py"
_EPOCHS = 10
# The default batch of 128 gives some hundred pictures one step per epoch, and the default warm-up of 5 epochs is meant for 300. These
# flags only make the peer faster and more accurate; SGD's default rate is meant for training from scratch.
TIMM_FLAGS = f"--epochs {_EPOCHS} -b 32 --opt adamw --lr 5e-4 --warmup-epochs 1 --channels-last -j 2"


@dataclass(frozen=True)
class Curve:
    """Accuracy on the validation pictures after each epoch, with the seconds since the command's start."""

    points: list[tuple[float, float]]

    @property
    def best(self) -> tuple[float, float]:
        """Seconds and accuracy of the first epoch with the best accuracy."""
        return max(self.points, key=lambda point: (point[1], -point[0]))

    def reaches(self, accuracy: float) -> float | None:
        """Seconds to the first epoch with at least this accuracy, or `None`."""
        return next((seconds for seconds, reached in self.points if reached >= accuracy), None)


def measure(options: argparse.Namespace, work: Path, records: Records) -> None:
    """Measure the contenders in turn in each round, from the start of the command: ours to its end, a peer to its best epoch."""
    splits = folders.given_splits(options.folder, options.limit)
    data = folders.link(splits, work / options.folder.name)
    part, weights, pictures = f"peers {options.folder.name}", export_weights(work), folders.count(splits, "val")
    for seed in range(options.rounds):
        with tempfile.TemporaryDirectory(dir=work) as cache:
            ours = train(data, work, Path(cache), "--seed", str(seed), *shlex.split(options.flags))
        accuracy, seconds = ours.metrics["val_accuracy"], ours.finished.seconds
        records.add(part, f"ours, first run {options.flags}".strip(), seconds, accuracy, pictures)
        for name in options.only.split(","):
            python = environment(name, options.environments)
            finished, curve = _CONTENDERS[name](python, data, weights, work, seed, options)
            to_best_s, best = curve.best
            to_ours_s = curve.reaches(accuracy)
            more = {
                "all epochs s": finished.seconds,
                "time to best ÷ ours": to_best_s / seconds,
                "points more than ours": 100 * (best - accuracy),
                "time to our accuracy ÷ ours": None if to_ours_s is None else to_ours_s / seconds,
            }
            records.add(part, _TITLES[name], to_best_s, best, pictures, **more)


def environment(name: str, folder: Path) -> Path:
    """Python of a peer's environment, which is created if it is missing.

    Raises:
        SystemExit: if uv is missing.
    """
    home = folder / name
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
        if not Path(uv).exists():
            raise SystemExit("uv is missing: pip install uv")
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, str(home)], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--compile-bytecode", "--python", str(python), *_PACKAGES[name]], check=True)
        (home / "complete").touch()
    return python


def _timm(python: Path, data: Path, weights: Path, work: Path, seed: int, options: argparse.Namespace) -> tuple[Finished, Curve]:
    if options.timm_script is None:
        raise SystemExit("--timm-script is missing: train.py of https://github.com/huggingface/pytorch-image-models")
    classes = len(list((data / "train").iterdir()))
    flags = f"--model {MODEL} --pretrained --pretrained-path {weights} --num-classes {classes} --train-split train --val-split val"
    flags += f" --seed {seed} --device cpu --log-interval 1000"
    output = tempfile.mkdtemp(prefix="timm-", dir=work)
    command = [
        str(python),
        str(options.timm_script.resolve()),
        "--data-dir",
        str(data),
        "--output",
        output,
        *flags.split(),
        *shlex.split(options.timm_flags),
    ]
    finished = run(command, folder=work)
    # The line of the last batch of each validation shows the mean over all batches.
    found = re.compile(r"Test: \[\s*(\d+)/(\d+)\].*Acc@1:\s*[\d.]+ \(\s*([\d.]+)\)")
    shown = [(seconds, match) for seconds, line in finished.lines if (match := found.search(line))]
    return finished, Curve([(seconds, float(match[3]) / 100) for seconds, match in shown if match[1] == match[2]])


def _fastai(python: Path, data: Path, weights: Path, work: Path, seed: int, options: argparse.Namespace) -> tuple[Finished, Curve]:
    finished = run([str(python), str(_FASTAI_SCRIPT), str(data), str(weights), str(seed)], folder=work)
    shown = [(seconds, line.split()) for seconds, line in finished.lines if line.startswith("accuracy ")]
    return finished, Curve([(seconds, float(words[1])) for seconds, words in shown])


_CONTENDERS: dict[str, Callable[..., tuple[Finished, Curve]]] = {"timm": _timm, "fastai": _fastai}
_TITLES = {"timm": "timm train.py, best of its epochs", "fastai": "fastai fine_tune(5), best of its epochs"}
