"""Versions on trial in the store: what may be tried, what is counted, and the rules that end a trial."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cifar_ray import cli
from cifar_ray.errors import ConfigError, StoreError
from cifar_ray.store import Bundle, ModelStore
from cifar_ray.store.__main__ import main
from cifar_ray.store.staging import stage_file
from cifar_ray.store.staging.rules import Condition, reason_to_withdraw, unmet
from cifar_ray.store.staging.stage_file import Stage, StageFile
from cifar_ray.store.staging.supervision import decide, supervise
from cifar_ray.store.staging.tallies import (
    Side,
    Tally,
    latency_ms,
    latency_ratio,
    mean_confidence,
    read_tallies,
    write_tally,
)
from tests.deployments.conftest import save_tiny  # noqa: F401  (a fixture)

SaveTiny = Callable[..., Bundle]


@pytest.fixture
def storage(tmp_path: Path, save_tiny: SaveTiny) -> str:  # noqa: F811
    """Three versions of pets; the first is in production."""
    for _ in range(3):
        save_tiny(str(tmp_path))
    ModelStore(str(tmp_path)).promote("pets", 1)
    return str(tmp_path)


def side(requests: int, failed: int = 0, latency_ms: float = 10.0, seed: int = 0) -> Side:
    counted, rng = Side(), np.random.default_rng(seed)
    for latency in rng.lognormal(math.log(latency_ms), 0.2, requests - failed).tolist():
        counted.answered([0.9], 0, latency)
    for _ in range(failed):
        counted.could_not_answer()
    return counted


def test_counts_add_up_and_survive_a_file() -> None:
    first = Tally(side(30, 2), side(20, 1, 40), 15, 12, 3, 4)
    both = first + Tally(side(5), side(4), 1, 1, 0, 0)
    assert (both.production.requests, both.staged.requests, both.compared, both.agreed, both.dropped, both.not_ready) == (
        35,
        24,
        16,
        13,
        3,
        4,
    )
    again = Tally.from_json(both.to_json())
    assert again.to_json() == both.to_json()
    assert again.staged.latency.tolist() == both.staged.latency.tolist()
    assert Tally.from_json(b"{cut").staged.requests == 0


def test_quantiles_are_those_of_the_times_within_a_bin() -> None:
    times = np.random.default_rng(1).lognormal(2, 0.5, 4000)
    counted = Side()
    for time in times.tolist():
        counted.answered([0.5], 0, time)
    for quantile in (0.5, 0.99):
        found = latency_ms(counted, quantile)
        assert found.value == pytest.approx(np.quantile(times, quantile), rel=0.03)
        assert found.low < found.value < found.high
    assert Side().quantile_ms(0.5) == 0


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """The 95 % interval of a ratio of medians, over 60 repetitions, and that of the mean confidence."""
    held = confident = 0
    for seed in range(60):
        tally = Tally(side(200, 0, 10, seed), side(60, 0, 15, 1000 + seed))
        ratio = latency_ratio(tally, 0.5)
        held += ratio.low <= 1.5 <= ratio.high
        counted, rng = Side(), np.random.default_rng(seed)
        counted.answered(rng.uniform(0.4, 1.0, 50).tolist(), 0, 1.0)
        mean = mean_confidence(counted)
        confident += mean.low <= 0.7 <= mean.high
    assert held >= 52
    assert confident >= 52


@pytest.mark.parametrize(
    ("text", "observed", "holds"),
    [
        ("errors <= 0.1 %", 10.0, False),
        ("errors<=10%", 10.0, True),
        ("Agreement >= 80 %", 80.0, True),
        ("agreement >= 98 %", 80.0, False),
        ("confidence >= 0.99x", 1.0, True),
        ("errors <= 2x", math.inf, False),
        ("abstentions <= 1x", 1.0, True),
    ],
)
def test_conditions_mean_what_they_say(text: str, observed: float, holds: bool) -> None:
    tally = Tally(side(100), side(20, 2), 10, 8)
    condition = Condition.parse(text)
    assert condition.observed(tally) == pytest.approx(observed)
    assert condition.holds(tally) == holds
    assert Condition.parse(str(condition)) == condition
    assert bool(unmet([condition], tally)) != holds


def test_times_are_compared_with_those_of_production_or_with_a_limit() -> None:
    tally = Tally(side(500, 0, 10), side(500, 0, 30, 1))
    assert Condition.parse("p50 <= 3.2x").holds(tally)
    assert not Condition.parse("p50 <= 2.8x").holds(tally)
    assert Condition.parse("p99 <= 80 ms").holds(tally)
    assert not Condition.parse("p99 <= 20ms").holds(tally)
    assert unmet([Condition.parse("p50 <= 2.8x")], tally).startswith("p50 <= 2.8x does not hold: 3")


def test_without_observations_no_condition_holds() -> None:
    for text in ("errors <= 5 %", "agreement >= 1 %", "p99 <= 9x", "confidence >= 1 %"):
        assert unmet([Condition.parse(text)], Tally()) == f"{Condition.parse(text)} does not hold: nothing was observed"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("errors < 1 %", "expected one like"),
        ("errors <= 1", "expected one like"),
        ("accuracy >= 90 %", "unknown figure accuracy. Available: errors, abstentions, confidence, agreement, p50, p99"),
        ("agreement >= 2x", "agreement has the unit %"),
        ("p99 <= 5 %", "p99 has the unit x or ms"),
    ],
)
def test_what_is_no_condition_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"^condition ") as refused:
        Condition.parse(text)
    assert message in str(refused.value)


def test_a_version_is_withdrawn_when_it_surely_fails_more_often_than_production() -> None:
    assert reason_to_withdraw(Tally(side(500), side(30, 3))) == "it failed in 3 of 30 requests, production in 0 of 500"
    assert not reason_to_withdraw(Tally(side(500), side(60, 2))), "two failures may be chance"
    assert not reason_to_withdraw(Tally(side(500), side(1, 1))), "one surely may be"
    assert not reason_to_withdraw(Tally(side(5000), side(1000, 10))), "1 % is allowed"
    assert not reason_to_withdraw(Tally(side(500, 50), side(100, 10))), "production fails as often"


def test_a_good_version_is_hardly_ever_withdrawn() -> None:
    """Half a percent of failures, looked at after every request for 1,000 requests: at most 3 of 100 trials end."""
    rng, withdrawn = np.random.default_rng(0), 0
    for _ in range(100):
        failing = np.flatnonzero(rng.random(1000) < 0.005) + 1  # the share of failures is highest right after one
        staged = (Side(requests=int(n), failed=k) for k, n in enumerate(failing, 1))
        withdrawn += any(reason_to_withdraw(Tally(Side(requests=20_000, failed=100), one)) for one in staged)
    assert withdrawn <= 3


def test_a_version_is_withdrawn_when_it_surely_takes_more_than_twice_as_long() -> None:
    assert "times as long as production" in reason_to_withdraw(Tally(side(400), side(20, 0, 50)))
    assert not reason_to_withdraw(Tally(side(400), side(19, 0, 50))), "fewer than 20 requests say little"
    assert not reason_to_withdraw(Tally(side(400), side(200, 0, 18)))


def test_a_version_is_promoted_after_enough_requests_if_its_conditions_hold(storage: str) -> None:
    store, stages = ModelStore(storage), StageFile(storage)
    stage = Stage(name="pets", version=2, share=0.1, promote_after=50, conditions=("p50 <= 1.3x",))
    stages.start(store, stage)
    assert supervise(store, stages, stage, Tally(side(500), side(49))) is None
    assert supervise(store, stages, stage, Tally(side(500), side(60, 0, 15))) is None, "it is slower"
    done = supervise(store, stages, stage, Tally(side(500), side(50)))
    assert done is not None
    assert done.action == "promote"
    assert store.aliases("pets") == {"production": 2, "previous": 1}
    assert stages.read() == ()
    assert [entry.action for entry in store.log.entries()] == ["promote", "stage", "promote"]
    assert store.log.entries()[-1].figures["requests"] == "50 (production 500)"
    assert supervise(store, stages, stage, Tally(side(500), side(50))) is None, "a second server finds it done"
    assert len(store.log.entries()) == 3


def test_a_withdrawal_happens_and_is_logged_once(storage: str) -> None:
    store, stages = ModelStore(storage), StageFile(storage)
    stage = Stage(name="pets", version=2, share=0.1)
    stages.start(store, stage)
    bad = Tally(side(500), side(30, 9))
    assert [supervise(store, stages, stage, bad) is not None for _ in range(3)] == [True, False, False]
    assert stages.read() == ()
    assert store.aliases("pets") == {"production": 1}
    entries = store.log.entries()
    assert [entry.action for entry in entries] == ["promote", "stage", "withdraw"]
    assert "failed in 9 of 30" in entries[-1].why


def test_kept_versions_are_not_withdrawn_and_promoted_ones_are_no_longer_on_trial(storage: str) -> None:
    store, stages = ModelStore(storage), StageFile(storage)
    kept = Stage(name="pets", version=2, share=0.1, withdraws=False)
    assert decide(kept, Tally(side(500), side(30, 9))) is None
    stages.start(store, kept)
    store.promote("pets", 2)
    assert supervise(store, stages, kept, Tally()) is None
    assert stages.read() == ()


def test_a_trial_counts_from_the_beginning_when_production_changes_meanwhile(storage: str) -> None:
    store, stages = ModelStore(storage), StageFile(storage)
    stages.start(store, Stage(name="pets", version=2, share=0.1, promote_after=50))
    stage = stages.find("pets")
    assert stage.against == 1
    store.promote("pets", 3)
    assert supervise(store, stages, stage, Tally(side(500), side(60))) is None, "it was compared with version 1"
    assert store.aliases("pets")["production"] == 3
    again = stages.find("pets")
    assert (again.against, again.promote_after, again.share) == (3, 50, 0.1)
    assert again.folder != stage.folder
    assert supervise(store, stages, stage, Tally(side(500), side(60))) is None, "a second server that has not read the new trial yet"
    assert stages.read() == (again,)
    assert supervise(store, stages, again, Tally(side(500), side(60))) is not None
    assert store.aliases("pets")["production"] == 2
    assert [entry.action for entry in store.log.entries()] == ["promote", "stage", "promote", "stage", "promote"]


def test_a_trial_ends_when_it_cannot_be_compared_with_the_new_production_version(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, stages = ModelStore(storage), StageFile(storage)
    stages.start(store, Stage(name="pets", version=2, share=0.1))
    stage = stages.find("pets")
    store.promote("pets", 3)
    monkeypatch.setattr(stage_file, "_check_comparable", fail)
    assert supervise(store, stages, stage, Tally()) is None
    assert stages.read() == ()
    assert (store.log.entries()[-1].action, store.log.entries()[-1].why) == ("withdraw", "other classes")


def fail(*_: object) -> int:
    raise StoreError("other classes")


def test_one_version_of_a_model_is_on_trial_and_the_same_one_may_get_another_share(storage: str) -> None:
    store, stages = ModelStore(storage), StageFile(storage)
    first, more = Stage(name="pets", version=2, share=0.05, staged_at_ms=1), Stage(name="pets", version=2, share=0.5, staged_at_ms=2)
    assert stages.start(store, first) is None
    replaced = stages.start(store, more)
    assert replaced is not None
    assert replaced.folder == first.folder
    with pytest.raises(StoreError, match="pets@2 for 50 % of the requests is on trial already; end it first"):
        stages.start(store, Stage(name="pets", version=3, share=0))
    assert stages.read() == (more.model_copy(update={"against": 1}),)
    assert not stages.end(first), "it was replaced"
    assert stages.end(more)


def test_what_several_servers_observed_is_added_and_forgotten_at_the_end(storage: str) -> None:
    stages = StageFile(storage)
    stage = Stage(name="pets", version=2, share=0)
    stages.start(ModelStore(storage), stage)
    for writer in ("one", "two"):
        write_tally(stages.files, stage.folder, writer, Tally(side(10), side(5)))
    write_tally(stages.files, stage.folder, "one", Tally(side(20), side(5)))
    assert read_tallies(stages.files, stage.folder).production.requests == 30
    assert read_tallies(stages.files, stage.folder, without=["one"]).production.requests == 10
    stages.end(stage)
    assert read_tallies(stages.files, stage.folder).production.requests == 0
    assert not list(Path(storage).glob("stages/pets/*"))


def test_a_damaged_file_of_stages_is_named(storage: str) -> None:
    path = Path(storage, "stages", "stages.json")
    path.parent.mkdir()
    path.write_text('{"stages": [{"name": "pets"}]}')
    with pytest.raises(StoreError, match=r"stages.json is damaged; delete this file"):
        StageFile(storage).read()


def run(storage: str, *argv: str) -> int:
    return cli.run(lambda: main([*argv, "--storage", storage]))


def test_the_commands_from_the_beginning_to_the_end_of_a_trial(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    rules = ["--promote-after", "1000", "--if", "errors <= 0.1 %", "p99 <= 1.2x"]
    assert run(storage, "stage", "pets@2", "--share", "5%", *rules) == 0
    assert "staged pets@2 for 5 % of the requests" in capsys.readouterr().out
    stages = StageFile(storage)
    [stage] = stages.read()
    write_tally(stages.files, stage.folder, "one", Tally(side(100), side(10, 1), 8, 6, 2, 1))
    assert run(storage, "stages") == 0
    shown = capsys.readouterr().out
    assert "rules: promoted after 1,000 requests if errors <= 0.1 % and p99 <= 1.2x; withdrawn if it fails or is slow" in shown
    assert "10 % (1.79–40.4)" in shown  # Wilson's interval of 1 in 10
    assert "75 % (40.9–92.9) of 8 pictures" in shown
    assert "note: 2 requests were not compared, because the server was busy" in shown
    assert "note: errors <= 0.1 % does not hold: 10%" in shown
    assert run(storage, "stages", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["figures"]["requests"] == ["100", "10"]
    assert run(storage, "unstage", "pets") == 0
    assert run(storage, "unstage", "pets") == 2
    assert "pets is not on trial. On trial: none" in capsys.readouterr().err
    assert run(storage, "log") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in lines[1:]] == ["promote", "stage", "unstage"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pets@2"], "give one of --shadow and --share 5%"),
        (["pets@2", "--shadow", "--share", "5%"], "give one of --shadow and --share 5%"),
        (["pets@2", "--share", "0"], "between 0 % and 100 %"),
        (["pets@2", "--share", "100%"], "between 0 % and 100 %"),
        (["pets@2", "--share", "many"], "between 0 % and 100 %"),
        (["pets@2", "--shadow", "--if", "errors <= 1 %"], "--if needs --promote-after"),
        (["pets@2", "--shadow", "--promote-after", "9", "--if", "errors"], "expected one like"),
        (["pets@1", "--shadow"], "pets@1 is the production version already"),
        (["pets@9", "--shadow"], "pets@9 not found"),
        (["pets", "--shadow"], "add a version, as in pets@3"),
    ],
)
def test_what_cannot_be_tried_is_refused_in_one_line(
    storage: str, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert run(storage, "stage", *argv) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert StageFile(storage).read() == ()


def test_a_model_without_a_production_version_cannot_be_compared(tmp_path: Path, save_tiny: SaveTiny) -> None:  # noqa: F811
    save_tiny(str(tmp_path))
    with pytest.raises(StoreError, match="pets has no production version to compare with"):
        StageFile(str(tmp_path)).start(ModelStore(str(tmp_path)), Stage(name="pets", version=1, share=0))
