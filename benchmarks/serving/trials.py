"""How much do versions on trial slow down requests, and how fast is a bad version withdrawn? On one machine, over real HTTP.

    python benchmarks/serving/trials.py                # everything; about ten minutes
    python benchmarks/serving/trials.py --only failing,slow

The server runs as a plain `serve run deployments:app`; 10 clients send 50 requests a second, each on its own connection.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import tempfile
from collections import Counter

import load
from contenders import URL
from faults import BODY, Clients, Seen, report, request, server
from PIL import Image
from random_model import save_random_model

from cifar_ray.store import ModelStore
from cifar_ray.store.staging.stage_file import Stage, StageFile
from cifar_ray.store.staging.tallies import Tally, read_tallies

CLIENTS, PER_S = 10, 50
# With this standard deviation, a gray picture gives probabilities, and a white one overflows.
OVERFLOWING_STD = 1e-37


def shadow(storage: str) -> None:
    """Times of requests without and with a shadow, in turn."""
    save_random_model("airnet", storage)  # version 2
    store, stages, ratios = ModelStore(storage), StageFile(storage), []
    with server(storage):
        _stage(storage, 0.0, 8)  # loads version 2 once
        _end(storage)
        for number in range(5):
            without = Clients(CLIENTS, 20, PER_S).run()
            report(f"round {number + 1}, no trial", without)
            stages.start(store, Stage(name="cifar10", version=2, share=0, withdraws=False))
            Clients(CLIENTS, 6, PER_S).run()  # until the server has noticed
            beside = Clients(CLIENTS, 20, PER_S).run()
            tally = _tally(stages)
            note = (
                f"compared {tally.compared:,}, dropped {tally.dropped:,}, same class {100 * (tally.agreed / max(1, tally.compared)):.1f} %"
            )
            report(f"round {number + 1}, with a shadow", beside, note)
            _end(storage)
            Clients(CLIENTS, 4, PER_S).run()
            ratios.append(_p99(beside) / _p99(without))
    print(
        f"p99 with ÷ without: median {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}), n = {len(ratios)}", flush=True
    )


def canary(storage: str) -> None:
    """Stage a version, then promote it, under load: which version answers, and does any request fail?"""
    save_random_model("airnet", storage)
    store, stages, n_before = ModelStore(storage), StageFile(storage), 8.0
    with server(storage):

        def start() -> None:
            stages.start(store, Stage(name="cifar10", version=2, share=0.2))

        seen = Clients(CLIENTS, 60, PER_S).run((n_before, start), (40, lambda: store.promote("cifar10", 2)))
    versions = [(one.at_s, json.loads(one.answer)["version"]) for one in seen if one.status == 200]
    begun = min(at_s for at_s, version in versions if version == 2)
    during = Counter(version for at_s, version in versions if begun <= at_s < 40)
    count, part = sum(during.values()), during[2]
    deviations = (part - 0.2 * count) / (count * 0.2 * 0.8) ** 0.5
    all_new = max(at_s for at_s, version in versions if version == 1)
    note = (
        f"first answer of version 2 after {begun - n_before:.1f} s; "
        f"then {part} of {count} ({100 * part / count:.1f} %, {deviations:+.1f} sd); "
        f"the last answer of version 1 came {all_new - 40:.1f} s after the promotion"
    )
    report("20 % for version 2, then promoted, 50 requests/s", seen, note)


def failing(storage: str) -> None:
    """A version that fails for one picture in ten gets 5 % of the requests."""
    save_random_model("small_cnn", storage, OVERFLOWING_STD)
    gray, white = (request(load.form(_plain(level))) for level in (125, 255))
    for _ in range(3):
        _bad(storage, "fails for 10 % of the pictures", [gray] * 9 + [white])


def slow(storage: str) -> None:
    """A version that takes more than five times as long gets 5 % of the requests."""
    save_random_model("wide_resnet28_10", storage)
    for _ in range(3):
        _bad(storage, "is slow", [request(load.multipart())])


def capture(storage: str) -> None:
    """Requests per second and CPU time per request of 32 clients, without captures and with 5 % captured, in turn."""
    ratios = []
    for number in range(5):
        found = {}
        for part in (0, 0.05) if number % 2 == 0 else (0.05, 0):
            with server(storage, capture=part) as running:
                before_s = running.cpu_s()
                run = load.run(URL, [BODY], 32, 15)
                found[part] = run["requests_per_s"], (running.cpu_s() - before_s) / run["requests"] * 1e3
        ratios.append([on / off for off, on in zip(found[0], found[0.05], strict=True)])
        rates, times = (f"{off:.{digits}f}, {on:.{digits}f}" for digits, off, on in zip((0, 2), found[0], found[0.05], strict=True))
        print(f"| round {number + 1}: capture off, 5 % | | {rates} requests/s | | {times} ms of processor time a request |", flush=True)
    for what, column in zip(("rate", "processor time"), zip(*ratios, strict=True), strict=True):
        spread = f"{statistics.median(column):.3f} ({min(column):.3f}–{max(column):.3f}), n = {len(column)}"
        print(f"{what} with ÷ without: median {spread}", flush=True)


def _bad(storage: str, what: str, requests: list[bytes]) -> None:
    store, stages, start_s = ModelStore(storage), StageFile(storage), 6.0
    for left in stages.read():
        stages.end(left)
    with server(storage):
        Clients(CLIENTS, 5, PER_S, requests).run()
        seen = Clients(CLIENTS, 50, PER_S, requests).run(
            (start_s, lambda: stages.start(store, Stage(name="cifar10", version=2, share=0.05))),
        )
    before = sorted(one.took_ms for one in seen if one.at_s < start_s)
    limit_ms = 2 * before[int(len(before) * 0.99)]
    by_two = [one.at_s for one in seen if b'"version":2' in one.answer]
    last = store.log.entries(1)[0]
    ended_s = max(by_two, default=start_s)
    during = [one for one in seen if start_s <= one.at_s <= ended_s]
    late = sum(one.took_ms > limit_ms for one in during) / max(1, len(during))
    note = (
        f"answered {len(by_two)}, from {min(by_two, default=0) - start_s:.1f} to {ended_s - start_s:.1f} s after its start; "
        f"{100 * late:.1f} % of the requests then took over {limit_ms:.0f} ms (twice the usual p99); log: {last.action}, {last.why}"
    )
    report(f"version 2 {what}, 5 %", seen, note)


def _stage(storage: str, share: float, seconds: float) -> list[Seen]:
    StageFile(storage).start(ModelStore(storage), Stage(name="cifar10", version=2, share=share, withdraws=False))
    return Clients(CLIENTS, seconds, PER_S).run()


def _end(storage: str) -> None:
    stages = StageFile(storage)
    stages.end(stages.find("cifar10"))


def _tally(stages: StageFile) -> Tally:
    return read_tallies(stages.files, stages.find("cifar10").folder)


def _p99(seen: list[Seen]) -> float:
    times = sorted(one.took_ms for one in seen if one.status == 200)
    return times[int(len(times) * 0.99)]


def _plain(level: int) -> bytes:
    jpeg = io.BytesIO()
    Image.new("RGB", (32, 32), (level,) * 3).save(jpeg, "JPEG", quality=95)
    return jpeg.getvalue()


SCENARIOS = {function.__name__: function for function in (shadow, canary, failing, slow, capture)}


def main() -> None:
    """Runs and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SCENARIOS), help=f"of {', '.join(SCENARIOS)}")
    options = parser.parse_args()
    print("| scenario | requests | answered | not answered with 200 | |\n|---|---|---|---|---|")
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory() as storage:
            save_random_model("small_cnn" if name in ("failing", "slow") else "airnet", storage)
            ModelStore(storage).promote("cifar10", 1)
            SCENARIOS[name](storage)


if __name__ == "__main__":
    main()
