"""How fast is our training loop, compared with an ordinary one, and how much time does Ray take while it trains?

    python benchmarks/training loop     [--model airnet] [--rounds 3]    our trainer and an ordinary loop, in turn
    python benchmarks/training command  [--model airnet] [--rounds 3]    the loop alone and inside `train`, in one process
    python benchmarks/training overhead [--model airnet] [--rounds 3]    the loop alone and inside `train`, on Ray
    python benchmarks/training workers  [--model airnet] [--rounds 3]    one worker on all cores, two on half of them each
    python benchmarks/training startup  [--rounds 3]                     from the command to the first step
    python benchmarks/training ceiling  [--model airnet]                 what part of a step is convolutions

Images are random, because speed does not depend on their content. Each measurement runs in its own process. Ratios compare measurements
of the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import measure

COMPARED = {"loop": ("ours", "ordinary"), "command": ("process", "ours"), "overhead": ("ray", "ours"), "workers": ("two", "ray")}
RECIPES = {"airnet": "airbench94", "small_cnn": "small_cnn", "resnet18": "resnet18"}


def main() -> None:
    """Run a comparison, or a single measurement of one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=[*COMPARED, "startup", "ceiling", *measure.CONTENDERS])
    parser.add_argument("--model", choices=RECIPES, default="airnet")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=3, help="the first one is not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=os.cpu_count(), help="cores that each side uses, all by default")
    options = parser.parse_args()
    job = measure.Job(RECIPES[options.model], options.images, options.epochs, options.cpus)
    if options.what in measure.CONTENDERS:
        print(json.dumps(measure.CONTENDERS[options.what](job)))
    elif options.what == "startup":
        measure.startup(options.rounds)
    elif options.what == "ceiling":
        measure.ceiling(job)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Measure both contenders in turn, and print the ratio of each round."""
    names = COMPARED[options.what]
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            rates[name].append(run_alone(name, options))
        first, second = (rates[name][-1] for name in names)
        print(f"round {number + 1}: {names[0]} {first:,.0f}, {names[1]} {second:,.0f} images/s, ratio {first / second:.2f}", flush=True)
    for name, values in rates.items():
        print(f"{options.model:10} {name:9} {statistics.mean(values):9,.0f} images/s ({min(values):,.0f}–{max(values):,.0f})")
    ratios = [first / second for first, second in zip(*rates.values(), strict=True)]
    print(f"{options.model:10} ratio     {statistics.mean(ratios):9.3f} ({min(ratios):.3f}–{max(ratios):.3f}), n = {len(ratios)}")


def run_alone(name: str, options: argparse.Namespace) -> float:
    """Images per second of one contender, measured in a separate process."""
    flags = ["--model", options.model, "--images", str(options.images), "--epochs", str(options.epochs), "--cpus", str(options.cpus)]
    command = [sys.executable, str(Path(__file__).parent), name, *flags]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
