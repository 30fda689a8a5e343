"""Drift is told soon when pictures change, and hardly ever when they do not."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
from ray.serve.metrics import Gauge

from cifar_ray import cli
from cifar_ray.config.serve_config import ServeConfig
from cifar_ray.drift import windows as drift_windows
from cifar_ray.drift.__main__ import main
from cifar_ray.drift.detection import detect
from cifar_ray.drift.watch import find_drift
from cifar_ray.drift.windows import Window, WindowWriter, read_windows
from cifar_ray.metrics.label_rules import LabelRules
from cifar_ray.storage import FileTree
from deployments.http.routes import create_app
from deployments.replicas.request_metrics import DriftMetrics
from tests.deployments.conftest import SaveTiny, make_picture, save_tiny
from tests.deployments.test_ingress import FakeClassifier, Notes

PETS = ("cat", "dog")
HALF = np.array([[0.5, 0.2]], np.float32)

__all__ = ["save_tiny"]

NAMES = tuple("abcdefghij")


def window(rng: np.random.Generator, pictures: int, *, abstaining: float = 0.05, sure: float = 12.0, first: float = 0.1) -> Window:
    """What a model of ten classes answers for so many pictures."""
    bins = Counter(np.minimum(rng.beta(sure, 2, pictures) * 20, 19).astype(int).tolist())
    shares = np.array([first, *[(1 - first) / 9] * 9])
    classes = dict(zip(NAMES, rng.multinomial(pictures, shares).tolist(), strict=True))
    abstained = int(rng.binomial(pictures, abstaining))
    return Window(pictures=pictures, abstained=abstained, confidence=tuple(bins[i] for i in range(20)), classes=classes)


@pytest.mark.parametrize("weeks", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_no_alarm_in_quiet_weeks_of_little_or_much_traffic(weeks: int) -> None:
    """A look after every window of ten minutes, at 100 and at 10,000 pictures per window; a week has 1,008."""
    for pictures in (100, 10_000):
        rng = np.random.default_rng(pictures)
        seen = [window(rng, pictures) for _ in range(weeks * 1008)]
        first, recent = max(1, 1000 // pictures), max(1, -(-300 // pictures))
        alarms = sum(detect([*seen[:first], *seen[end - recent : end]]).is_alarm for end in range(first + recent, len(seen)))
        assert alarms == 0


@pytest.mark.parametrize("change", [{"abstaining": 0.2}, {"sure": 5.0}, {"first": 0.35}])
def test_a_change_is_told_within_300_pictures(change: dict[str, float]) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        usual, changed = [window(rng, 100) for _ in range(30)], [window(rng, 100, **change) for _ in range(3)]
        assert not detect(usual).is_alarm
        assert detect([*usual, *changed]).is_alarm


def test_a_significant_difference_that_does_not_matter_is_no_alarm() -> None:
    rng = np.random.default_rng(0)
    drift = detect([window(rng, 100_000), window(rng, 100_000, abstaining=0.07, first=0.13)])
    assert min(shift.p_value for shift in drift.shifts) < 1e-6
    assert not drift.is_alarm


def test_too_few_pictures_are_not_compared() -> None:
    rng = np.random.default_rng(0)
    assert detect([]).shifts == ()
    assert detect([window(rng, 1000), window(rng, 299)]).shifts == ()
    assert len(detect([window(rng, 1000), window(rng, 300)]).shifts) == 3


def test_answers_are_counted_in_windows_that_several_processes_write(tmp_path: Path) -> None:
    now = [1_800_000_000.0]
    writers = [WindowWriter(str(tmp_path), lambda: now[0]) for _ in range(2)]
    for writer in writers:
        for _ in range(60):
            writer.count("pets@1", PETS, np.array([[0.42, 0.3], [0, 1]], np.float32), 1)
        writer.write()
    assert sum(one.pictures for one in read_windows(str(tmp_path), "pets@1")) == 240
    now[0] += 601
    writers[0].count("pets@1", PETS, np.zeros((1, 2), np.float32), 0)
    writers[0].write()  # closes its window
    now[0] += 1
    writers[0].count("pets@1", PETS, np.zeros((1, 2), np.float32), 0)
    writers[0].write()
    found = read_windows(str(tmp_path), "pets@1")
    assert [one.pictures for one in found] == [121, 120, 1] or [one.pictures for one in found] == [120, 121, 1]
    total = sum(found[1:], found[0])
    assert (total.abstained, total.classes) == (120, {"cat": 122, "dog": 120})
    assert (total.confidence[0], total.confidence[8], total.confidence[19]) == (2, 120, 120)


def test_labels_are_counted_by_their_rules_also_while_answers_of_other_versions_wait(tmp_path: Path) -> None:
    writer, rules = WindowWriter(str(tmp_path)), LabelRules((0.3, 0.6, 0.9), (1.0,) * 3, (0.0,) * 3)
    for _ in range(300):  # more than wait
        writer.count("scenes@2", ("beach", "night", "sea"), np.array([[0.4, 0.7, 0.1], [0.1, 0.1, 0.1]], np.float32), 0, rules)
        writer.count("pets@1", PETS, HALF, 0)
        writer.count("pets@1", PETS, HALF[:0], 0)
    writer.write()
    [scenes], [pets] = read_windows(str(tmp_path), "scenes@2"), read_windows(str(tmp_path), "pets@1")
    assert (scenes.pictures, scenes.classes) == (600, {"beach": 300, "night": 300})
    assert (pets.pictures, pets.classes, pets.confidence[10]) == (300, {"cat": 300}, 300)


def test_what_cannot_be_written_waits(tmp_path: Path) -> None:
    (tmp_path / "drift").write_text("a file in the way")
    writer = WindowWriter(str(tmp_path))
    writer.count("pets@1", PETS, HALF, 0)
    with pytest.raises(Exception, match="cannot write"):
        writer.write()
    (tmp_path / "drift").unlink()
    writer.write()
    assert [one.pictures for one in read_windows(str(tmp_path), "pets@1")] == [1]


def test_damaged_windows_are_left_out_and_old_ones_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = WindowWriter(str(tmp_path))
    writer.count("pets@1", PETS, HALF, 0)
    writer.write()
    [path] = (tmp_path / "drift" / "pets@1").iterdir()
    path.with_name(path.name.replace(path.name[:13], "1700000000000")).write_text("{cut")
    (path.parent / "1000000000000-00000000000000000000000000000000.json").write_bytes(path.read_bytes())
    assert len(read_windows(str(tmp_path), "pets@1")) == 1
    monkeypatch.setattr(drift_windows, "_MAX_AGE_S", 1e10)
    assert len(read_windows(str(tmp_path), "pets@1")) == 1, "it was deleted"


def test_a_server_counts_what_it_answers(tmp_path: Path) -> None:
    import asyncio

    writer = WindowWriter(str(tmp_path))
    app = create_app(FakeClassifier(), ServeConfig(), Notes(), windows=writer)

    async def ask() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            for _ in range(3):
                await client.post("/predict", content=make_picture())

    asyncio.run(ask())
    writer.write()
    [found] = read_windows(str(tmp_path), "pets@3")
    assert (found.pictures, found.classes) == (3, {"eel": 3})


def test_the_command_tells_and_its_exit_code_is_for_jobs(
    tmp_path: Path,
    save_tiny: SaveTiny,
    capsys: pytest.CaptureFixture[str],
) -> None:
    storage, folder = str(tmp_path), tmp_path / "drift" / "pets@1"
    save_tiny(storage)

    def run(*argv: str) -> tuple[int, str]:
        code = cli.run(lambda: main([*argv, "--storage", storage]))
        return code, capsys.readouterr().out

    code, text = run("pets")
    assert code == 0
    assert "has answered 0 pictures" in text
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)

    def write(number: int, one: Window) -> None:
        (folder / f"{1_900_000_000_000 + number}-{'0' * 32}.json").write_text(one.model_dump_json())

    write(0, window(rng, 1000))
    write(1, window(rng, 400))
    assert run("pets@1")[0] == 0
    write(2, window(rng, 400, abstaining=0.3))
    code, text = run("pets")
    assert code == 1
    assert "abstentions" in text
    assert "changed" in text
    assert "cifar-ray review captures" in text
    code, text = run("pets", "--json")
    assert json.loads(text)["drift"] is True
    assert code == 1
    assert cli.run(lambda: main(["fish", "--storage", storage])) == 2


def write_windows(storage: Path, windows: list[Window], age_s: float = 0.0) -> None:
    """Windows of pets@3, ten minutes each; the last one begins now, or was begun so long ago."""
    now_ms = int((time.time() - age_s) * 1000)
    for number, one in enumerate(windows):
        begun_ms = now_ms - (len(windows) - 1 - number) * 600_000
        FileTree(str(storage), "drift/pets@3").replace(f"{begun_ms:013d}-{'0' * 32}.json", one.model_dump_json().encode())


def test_a_server_finds_the_drift_that_the_command_tells_without_reading_every_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    write_windows(tmp_path, [window(rng, 100) for _ in range(30)] + [window(rng, 100, abstaining=0.3) for _ in range(3)])
    expected, read = detect(read_windows(str(tmp_path), "pets@3")), []
    whole = FileTree.read
    monkeypatch.setattr(FileTree, "read", lambda self, path: read.append(path) or whole(self, path))
    assert find_drift(str(tmp_path)) == {"pets@3": expected}
    assert expected.is_alarm
    assert len(read) == 13


def test_versions_that_answer_no_more_or_too_little_are_not_watched(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    assert find_drift(str(tmp_path)) == {}
    write_windows(tmp_path, [window(rng, 100) for _ in range(12)])
    assert find_drift(str(tmp_path)) == {}
    write_windows(tmp_path / "old", [window(rng, 100) for _ in range(30)], age_s=90_000)
    assert find_drift(str(tmp_path / "old")) == {}


def test_the_gauges_show_distance_and_alarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, shown = np.random.default_rng(0), {}
    write_windows(tmp_path, [window(rng, 100) for _ in range(30)] + [window(rng, 100, abstaining=0.3) for _ in range(3)])
    monkeypatch.setattr(Gauge, "set", lambda self, value, tags: shown.update({(self._name, tags.get("figure"), tags["version"]): value}))
    DriftMetrics().show(find_drift(str(tmp_path)))
    assert shown["cifar_ray_drift_alarm", None, "3"] == 1
    assert 0.15 < shown["cifar_ray_drift_distance", "abstentions", "3"] < 0.35
    assert len(shown) == 4
