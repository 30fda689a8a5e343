"""How long does a command take from start to end, or a server to its first answer, and how much of it is CPU time?

    python benchmarks/startup.py --rounds 3                       all cases, each once per round
    python benchmarks/startup.py --only help,script,train         some of them

Each case runs in its own processes, in a storage that the first round fills. `script` is the baseline for `train`: the same data, network
and steps, written by hand in one process. Nothing else should run on the machine meanwhile. It prints a Markdown table: median and range.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
PORT = 8123
TIMEOUT_S = 180
SCRIPT = """
import torch
from sklearn.datasets import load_digits
from torch import nn

digits = load_digits()
images = torch.tensor(digits.images / 16, dtype=torch.float32)[:, None].repeat(1, 3, 4, 4)
labels = torch.tensor(digits.target)


def block(before, after):
    return nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)


network = nn.Sequential(*block(3, 32), *block(32, 64), *block(64, 128), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
optimizer, loss = torch.optim.AdamW(network.parameters(), 3e-3), nn.CrossEntropyLoss()
for rows in torch.randperm(1458).split(64):
    optimizer.zero_grad()
    loss(network(images[rows]), labels[rows]).backward()
    optimizer.step()
network.eval()
with torch.no_grad():
    print((network(images[1458:]).argmax(1) == labels[1458:]).float().mean())
torch.save(network.state_dict(), "network.pt")
"""


@dataclass(frozen=True)
class Run:
    """One run of a case.

    Attributes:
        seconds: from the start of the command to its end, or to the first answer.
        cpu_s: CPU seconds of all its processes until then.
        first_line_s: from the start of the command to its first line; `None` if there was none.
    """

    seconds: float
    cpu_s: float
    first_line_s: float | None


def verb(*words: str) -> list[str]:
    """A `cifar_ray` command of this checkout."""
    return [sys.executable, "-m", "cifar_ray", *words]


DIGITS = ("train", "--dataset", "digits", "--epochs", "1", "--save-as", "digits")
TO_PROMPT: Mapping[str, tuple[list[str], int]] = {
    "help": (verb("train", "--help"), 0),
    "wrong-flag": (verb("train", "--epoch", "3"), 2),
    "list-models": (verb("train", "--list-models"), 0),
    "store-list": (verb("store", "list"), 0),
    "import-torch": ([sys.executable, "-c", "import torch"], 0),
    "script": ([sys.executable, "-c", SCRIPT], 0),
    "train": (verb(*DIGITS), 0),
    "train-two-workers": (verb(*DIGITS, "--num-workers", "2"), 0),
    "predict": (verb("predict", "digits", "digit.png"), 0),
    "demo": (verb("demo"), 0),
}
TO_ANSWER: Mapping[str, list[str]] = {
    "serve": verb("serve", "digits", "--port", str(PORT)),
    "serve-run": [str(Path(sys.executable).parent / "serve"), "run", "deployments:app", "model=digits"],
}
MEANINGS = {
    "help": "`train --help`",
    "wrong-flag": "`train --epoch 3`",
    "list-models": "`train --list-models`",
    "store-list": "`store list`",
    "import-torch": 'for comparison: `python -c "import torch"`',
    "script": "for comparison: digits, one epoch, by hand in one process",
    "train": "`train --dataset digits --epochs 1`",
    "train-two-workers": "the same with `--num-workers 2`, which starts Ray",
    "predict": "`predict digits digit.png`",
    "demo": "`demo`",
    "serve": "`cifar-ray serve` to the first answer",
    "serve-run": "`serve run deployments:app` to the first answer",
}


def run_to_prompt(command: list[str], expected: int, folder: Path, environment: dict[str, str]) -> Run:
    """Run a command to its end.

    Raises:
        SystemExit: if it ends with another exit code.
    """
    before, started = os.times(), time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines, first = [], None
    for line in process.stdout:
        first = first or time.perf_counter() - started
        lines.append(line)
    if process.wait() != expected:
        raise SystemExit(f"{''.join(lines[-20:])}\nexit code {process.returncode}: {' '.join(command)}")
    seconds, after = time.perf_counter() - started, os.times()
    return Run(seconds, after.children_user + after.children_system - before.children_user - before.children_system, first)


def run_to_answer(command: list[str], port: int, folder: Path, environment: dict[str, str]) -> Run:
    """Start a server, send it requests until it answers, and stop it.

    Raises:
        SystemExit: if it ends, or does not answer in time.
    """
    mark = f"startup-{os.getpid()}-{time.monotonic_ns()}"
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=environment | {"STARTUP_MARK": mark}, stdout=output, stderr=output)
        try:
            while not _answers(port, (folder / "digit.png").read_bytes()):
                if process.poll() is not None or time.perf_counter() - started > TIMEOUT_S:
                    output.seek(0)
                    raise SystemExit(f"{output.read()[-2000:]}\nno answer: {' '.join(command)}")
                time.sleep(0.1)
            seconds, cpu_s = time.perf_counter() - started, _cpu_s(mark)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(TIMEOUT_S)
            _await_end(mark)
    return Run(seconds, cpu_s, None)


def _answers(port: int, picture: bytes) -> bool:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/predict", picture, {"Content-Type": "image/png"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return "class_name" in json.load(answer)
    except (OSError, ValueError, urllib.error.HTTPError):
        return False


def _marked(mark: str) -> list[Path]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(folder)
        except OSError:
            continue
    return found


def _cpu_s(mark: str) -> float:
    """CPU seconds of all processes with `mark` in their environment, including their ended children."""
    ticks = 0
    for folder in _marked(mark):
        try:
            ticks += sum(map(int, (folder / "stat").read_text().rpartition(")")[2].split()[11:15]))
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


def _await_end(mark: str) -> None:
    """Wait until Ray's last process is gone, so that it does not disturb the next case."""
    deadline = time.monotonic() + TIMEOUT_S
    while _marked(mark) and time.monotonic() < deadline:
        time.sleep(0.2)


def prepare(folder: Path, environment: dict[str, str]) -> None:
    """Create a model and a picture for the cases that need them."""
    from PIL import Image

    Image.new("RGB", (32, 32), (120, 120, 120)).save(folder / "digit.png")
    run_to_prompt(verb(*DIGITS), 0, folder, environment)


def table(runs: Mapping[str, list[Run]]) -> str:
    """Median and range of each case."""
    lines = ["| what | seconds | processor seconds | first line after, s | n |", "|---|---|---|---|---|"]
    for name, of_case in runs.items():
        first = [run.first_line_s for run in of_case if run.first_line_s is not None]
        cells = [MEANINGS[name], _spread([run.seconds for run in of_case]), _spread([run.cpu_s for run in of_case])]
        lines.append(f"| {' | '.join([*cells, _spread(first) if first else '–', str(len(of_case))])} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{median(values):.1f}" + (f" ({min(values):.1f}–{max(values):.1f})" if len(values) > 1 else "")


def main() -> None:
    """Measure the cases in turn, round after round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(MEANINGS), help="cases, separated by commas (default: all)")
    options = parser.parse_args()
    runs: dict[str, list[Run]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = dict(os.environ) | {
            "PYTHONPATH": str(ROOT),
            "CIFAR_RAY_STORAGE": str(folder),
            "CIFAR_RAY_CACHE": str(folder / "cache"),
        }
        environment.pop("RAY_ADDRESS", None)
        prepare(folder, environment)
        for number in range(options.rounds):
            for case in options.only.split(","):
                if case in TO_PROMPT:
                    command, expected = TO_PROMPT[case]
                    run = run_to_prompt(command, expected, folder, environment)
                else:
                    run = run_to_answer(TO_ANSWER[case], PORT if case == "serve" else 8000, folder, environment)
                runs[case].append(run)
                print(f"round {number + 1}: {case}: {run.seconds:.1f} s", file=sys.stderr, flush=True)
    print(table(runs))


if __name__ == "__main__":
    main()
