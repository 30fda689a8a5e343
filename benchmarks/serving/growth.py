"""How do requests/s grow with model replicas, and fall with the size of the pictures; and what would the forward pass alone allow?

    python benchmarks/serving/growth.py --storage DIR --pictures DIR      # needs wrk; ten minutes for 224 px

Serves the model that was promoted last, and posts photographs in turn over loopback, in turn for all values in each round. The limit is
the rate of the network alone: batches of 32 in one process, with all cores, without a server and a load generator.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import load
from contenders import ROOT, URL, contenders, started

_WARM_UP_S = 3
_PHOTOGRAPHS = 20
_FORWARD = """
import sys, time
import numpy as np
from cifar_ray.inference.predictor import Predictor
from cifar_ray.store import ModelStore
from cifar_ray.store.default_model import last_promoted_first

store = ModelStore(sys.argv[1])
predictor = Predictor(store.load(last_promoted_first(store)[0]))
size = predictor.manifest.image_size_px
images = np.random.default_rng(0).integers(0, 256, (32, size, size, 3), np.uint8)
predictor.predict(images)
started, done = time.perf_counter(), 0
while time.perf_counter() - started < 5:
    predictor.predict(images)
    done += len(images)
print(done / (time.perf_counter() - started))
"""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", type=Path, required=True, help="its model that was promoted last is served")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of photographs")
    parser.add_argument("--replicas", default="1,2,4", help="numbers of model replicas, with pictures of the first side")
    parser.add_argument("--sides", default="400,100,1000,4000", help="longer sides of the photographs, px, with one replica")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=6.0, help="of load for each value and round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    sides = [int(side) for side in options.sides.split(",")]
    bodies = {side: load.photographs(options.pictures, side, _PHOTOGRAPHS) for side in sides}
    values = [(int(number), sides[0]) for number in options.replicas.split(",")] + [(1, side) for side in sides[1:]]
    storage = str(options.storage.resolve())
    found: dict[tuple[int, int], list[float]] = {value: [] for value in values}
    limits = []
    for _ in range(options.rounds):
        limits.append(forward_alone(storage))
        print(f"forward pass alone: {limits[-1]:.0f} pictures/s", flush=True)
        for replicas in dict.fromkeys(number for number, _ in values):
            server = contenders()["fast"]
            server = replace(server, command=[*server.command, "--replicas", str(replicas)])
            with started(server, storage, bodies[sides[0]][0], ROOT):
                for side in [side for number, side in values if number == replicas]:
                    load.run(URL, bodies[side], options.clients, _WARM_UP_S)
                    figures = load.run(URL, bodies[side], options.clients, options.seconds)
                    found[replicas, side].append(figures["requests_per_s"])
                    print(replicas, side, {key: round(value, 1) for key, value in figures.items()}, flush=True)
    limit = statistics.median(limits)
    print(f"{options.clients} clients; forward pass alone: {spread(limits)} pictures/s")
    print("| model replicas | longer side, px | kB | requests/s | of the forward pass alone |\n|---|---|---|---|---|")
    for (replicas, side), rates in found.items():
        size = statistics.mean(len(body) for body in bodies[side]) / 1000
        print(f"| {replicas} | {side} | {size:,.0f} | {spread(rates)} | {100 * statistics.median(rates) / limit:.0f} % |")


def forward_alone(storage: str) -> float:
    """Pictures per second of the network in a process of its own."""
    command, environment = [sys.executable, "-c", _FORWARD, storage], os.environ | {"PYTHONPATH": str(ROOT)}
    return float(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()[-1])


def spread(values: list[float]) -> str:
    """Median and range."""
    return f"{statistics.median(values):.0f} ({min(values):.0f}–{max(values):.0f})"


if __name__ == "__main__":
    main()
