"""What a person sees on a terminal, and what a pipe gets."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cifar_ray.cli.logs import show_log
from cifar_ray.cli.output.terminal import ProgressDisplay, print_table
from cifar_ray.cli.output.training_progress import ConsoleProgress
from cifar_ray.training.records.results import EpochReport
from tests.cli.screen import Screen

Shown = pytest.CaptureFixture[str]
MakeScreen = Callable[[], Screen]

LONG = "a name of more than eighty columns [bold]with markup[/bold] :smile: " + "x" * 100
REPORT = EpochReport(2, 0.5, 0.75, 0.25, 0.9, 0.1, 3.0, 1234.0, True)


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that rich heeds, as in a usual terminal."""
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "COLUMNS", "LINES", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def make_screen(monkeypatch: pytest.MonkeyPatch) -> MakeScreen:
    """Makes stderr a terminal, in the test itself: pytest sets its own stderr after fixtures have run."""

    def replace_stderr() -> Screen:
        screen = Screen()
        monkeypatch.setattr(sys, "stderr", screen)
        return screen

    return replace_stderr


def test_a_table_in_a_pipe_is_one_aligned_plain_line_per_row(capsys: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as some CI services do
    print_table([("a", "1"), (LONG, "22")], ("name", "n"), ("left", "right"), ["", "red"])
    assert capsys.readouterr().out.splitlines() == [
        f"{'name':{len(LONG)}}   n",
        f"{'a':{len(LONG)}}   1",
        f"{LONG}  22",
    ]


def test_a_table_without_rows_prints_nothing(capsys: Shown) -> None:
    print_table([])
    assert capsys.readouterr().out == ""


def test_a_table_on_a_terminal_has_colours_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    print_table([("a", "1"), (LONG, "22")], ("name", "n"), styles=["", "red"])
    assert screen.has_colours
    assert all(len(line) <= 80 for line in screen.lines)
    assert "".join(line.partition("  22")[0].strip() for line in screen.lines[2:]).replace(" ", "") == LONG.replace(" ", "")


def test_without_a_terminal_only_messages_are_shown_in_plain_lines(capsys: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with ProgressDisplay() as display:
        advance = display.start("decoding", 10)
        advance(5)
        display.update("decoding", 7)
        display.write(LONG)
    assert capsys.readouterr() == ("", f"{LONG}\n")


def test_a_dumb_terminal_gets_no_control_characters(make_screen: MakeScreen, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = make_screen()
    monkeypatch.setenv("TERM", "dumb")
    with ProgressDisplay() as display:
        display.start("decoding", 10)(5)
        display.write("a message")
    assert screen.getvalue() == "a message\n"


def test_on_a_terminal_bars_stay_below_messages(make_screen: MakeScreen) -> None:
    screen = make_screen()
    with ProgressDisplay() as display:
        advance = display.start("evaluating", 2000)
        advance(500)
        display.write("a message")
        print("another one", file=sys.stderr)
        advance(1500)
        display.start("embedding", 3000)(1000)
    assert sys.stderr is screen
    lines = [line for line in screen.lines if line]
    assert lines[:2] == ["a message", "another one"]
    assert [line.split()[0] for line in lines[2:]] == ["evaluating", "embedding"]
    assert "2,000/2,000 images" in lines[2]
    assert "1,000/3,000 images" in lines[3]
    assert screen.getvalue().count("\x1b[?25l") == screen.getvalue().count("\x1b[?25h") == 1, "the cursor is back"


def test_results_in_a_pipe_stay_there_while_a_bar_is_shown(make_screen: MakeScreen, capsys: Shown) -> None:
    screen = make_screen()
    with ProgressDisplay() as display:
        display.start("predicting", 10)
        print("a result")
    assert capsys.readouterr().out == "a result\n"
    assert "a result" not in screen.getvalue()


@contextmanager
def no_log_handlers() -> Iterator[None]:
    """Takes pytest's handlers away, as in a program that has just started."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_log_messages_go_above_a_bar(make_screen: MakeScreen) -> None:
    screen = make_screen()
    logger = logging.getLogger("cifar_ray.data.folder")
    with no_log_handlers(), ProgressDisplay() as display:
        show_log()
        logger.info("before")
        display.start("decoding", 10)(10)
        logger.warning("skipped torn.png")
    assert screen.lines[:2] == ["before", "skipped torn.png"]
    assert screen.lines[2].startswith("decoding")


def test_of_other_libraries_only_warnings_are_shown(capsys: Shown) -> None:
    other = logging.getLogger("matplotlib.font_manager")
    with no_log_handlers():
        show_log()
        other.info("generated new fontManager")
        other.warning("no font has this character")
        logging.getLogger("cifar_ray.data.folder").info("decoded")
    assert capsys.readouterr().err.splitlines() == ["no font has this character", "decoded"]


def test_what_there_is_to_say_about_a_data_set_is_shown_once_a_command(capsys: Shown) -> None:
    listing, training = logging.getLogger("cifar_ray.data.listing.tables"), logging.getLogger("cifar_ray.training.loop")
    for _ in ("one command", "the next"):
        with no_log_handlers():
            show_log()
            for logger in (listing, training) * 2:
                logger.info("3 rows")
        assert capsys.readouterr().err.splitlines() == ["3 rows"] * 3


def test_a_run_is_a_line_per_epoch_without_a_terminal(capsys: Shown) -> None:
    progress = ConsoleProgress(10, 1000)
    progress.on_message("run one")
    progress.on_step(2, 3, 4)
    progress.on_epoch(REPORT)
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "run one",
        "epoch  2/10  train loss 0.500 acc  75.00 %  val loss 0.250 acc  90.00 %  1,234 img/s  3.0 s  best",
    ]


def test_a_run_has_one_bar_over_all_epochs_on_a_terminal(make_screen: MakeScreen) -> None:
    screen = make_screen()
    progress = ConsoleProgress(10, 1000)
    progress.on_step(1, 3, 4)
    progress.on_epoch(REPORT)
    progress.on_step(2, 3, 4)
    progress.close()
    progress.close()
    line, bar = (line for line in screen.lines if line)
    assert line.startswith("epoch  2/10  train loss")
    assert bar.startswith("epoch 2/10")
    assert "1,750/10,000 images" in bar
