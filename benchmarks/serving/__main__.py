"""Throughput and latency of our server, compared with other Python servers of the same model.

    pip install -e '.[bench,openvino]'; apt-get install wrk
    python benchmarks/serving                                          # everything; about half an hour
    python benchmarks/serving --only fast,litserve --models airnet --seconds 3 --rounds 1
    python benchmarks/serving --only fast,litserve_fp32,litserve,litserve_engine --storage DIR --pictures DIR   # your model and photographs

Starts the servers in turn in each round, with the same bundle (random weights cost the same arithmetic as trained ones), on the same cores
as the load generator. Posts one 32×32 JPEG, or photographs in turn, as a multipart form over loopback. Appends measurements to a file, so
you can measure in several sessions; the table covers all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import load
from contenders import ROOT, URL, contenders, started
from random_model import save_random_model
from table import render

from cifar_ray.store import ModelStore
from cifar_ray.store.default_model import last_promoted_first

WARM_UP_S = 3
PHOTOGRAPHS = 100


def main() -> None:
    """Measures and prints."""
    known = contenders()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(known), help=f"of {', '.join(known)}")
    parser.add_argument("--models", default="small_cnn,airnet", help="networks with random weights, unless --storage is given")
    parser.add_argument("--storage", type=Path, help="serve the model that was promoted last in this storage, instead of --models")
    parser.add_argument("--pictures", type=Path, help="folder of photographs to post, instead of one 32×32 JPEG")
    parser.add_argument("--side", type=int, default=400, help="longer side of the photographs that are posted, in pixels (default: 400)")
    parser.add_argument("--concurrency", default="1,32,128")
    parser.add_argument("--seconds", type=float, default=10.0, help="of load at each concurrency, after warming up")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cores", help="for servers and load alike, e.g. 0,1; default: all")
    parser.add_argument("--checkout", type=Path, default=ROOT, help="measure the server of another checkout")
    parser.add_argument("--label", default="", help="added to the names of our servers")
    parser.add_argument("--out", type=Path, default=Path("serving.jsonl"), help="measurements are appended here")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("the load generator is missing: apt-get install wrk")
    if options.cores:
        os.sched_setaffinity(0, map(int, options.cores.split(",")))
    levels = [int(level) for level in options.concurrency.split(",")]
    bodies = load.photographs(options.pictures, options.side, PHOTOGRAPHS) if options.pictures else [load.multipart()]
    with tempfile.TemporaryDirectory() as folder:
        storages = stored(options.storage) if options.storage else {name: f"{folder}/{name}" for name in options.models.split(",")}
        if not options.storage:
            for model, storage in storages.items():
                save_random_model(model, storage)
        for _ in range(options.rounds):
            for model, storage in storages.items():
                for key in options.only.split(","):
                    contender = known[key]
                    name = f"{contender.name} {options.label}".strip() if contender.is_ours else contender.name
                    with started(contender, storage, bodies[0], options.checkout.resolve()) as server, options.out.open("a") as out:
                        load.run(URL, bodies, max(levels), WARM_UP_S)
                        for level in levels:
                            before = server.cpu_s()
                            figures = load.run(URL, bodies, level, options.seconds)
                            figures["cpu_ms"] = (server.cpu_s() - before) / max(figures["requests"], 1) * 1e3
                            print(model, name, level, {k: round(v, 2) for k, v in figures.items()}, flush=True)
                            out.write(json.dumps({"model": model, "server": name, "concurrency": level} | figures) + "\n")
    print(render([json.loads(line) for line in options.out.read_text().splitlines()]))


def stored(storage: Path) -> dict[str, str]:
    """The user's storage, by the name of the model that was promoted last."""
    store = ModelStore(str(storage.resolve()))
    return {last_promoted_first(store)[0]: str(storage.resolve())}


if __name__ == "__main__":
    main()
