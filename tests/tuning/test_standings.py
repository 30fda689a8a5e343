"""How a search is shown: in text, on a terminal, and without one."""

import pytest

from cifar_ray.cli.output.search_table import LiveTable
from cifar_ray.tuning.record import Record
from cifar_ray.tuning.standings import summarize, table
from tests.cli.screen import Screen


def test_the_summary_names_the_best_trial_and_counts_all(record: Record) -> None:
    text = summarize(record)
    best = record.ranked()[0]
    assert f"best: trial {best.number}, {100 * (best.epochs[-1]['val_accuracy']):.2f} %" in text
    assert "4 finished, 8 stopped, 1 diverged, 1 failed" in text
    assert [row[0] for row in table(record)] == [str(number) for number in range(1, 13)]


def test_without_a_terminal_each_epoch_is_a_line(record: Record, capsys: pytest.CaptureFixture[str]) -> None:
    LiveTable().on_trial(record, record.trials[2])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("trial   3  finished    epoch   6/6")
    assert "500 img/s" in line
    assert line.endswith("time left unknown")


@pytest.mark.parametrize("columns", [80, 50])
def test_on_a_terminal_the_table_stays_in_place_and_messages_go_above_it(
    record: Record, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(columns))
    screen = Screen()
    live = LiveTable(time_budget_s=600, stream=screen)
    live.on_trial(record, record.trials[0])
    live.on_message("a message")
    live.on_trial(record, record.trials[1])
    live.close(record)
    live.close(record)
    message, headings, *rows = (line for line in screen.lines if line)
    assert message == "a message"
    assert headings.split()[:6] == ["trial", "status", "epoch", "accuracy", "best", "img/s"]
    assert [row.split()[0] for row in rows[:-2]] == [str(number) for number in range(1, 13)], "one table was drawn over the other"
    assert rows[0].split()[1:3] == ["stopped", "2/6"], "columns of figures are not cut"
    assert rows[-2].startswith("14 of 14 trials")
    assert rows[-1] == "10:00 min left"
    assert all(len(line) <= columns for line in screen.lines)
