"""What two signals do, as the operating system and Python deliver them."""

import signal
import subprocess
import sys

import pytest

from cifar_ray.cluster.signals import Signals
from cifar_ray.errors import Interrupted


def test_the_first_signal_asks_and_the_second_ends() -> None:
    asked: list[int] = []
    with Signals() as signals:
        signals.ask_with(asked.append)
        signal.raise_signal(signal.SIGTERM)
        assert (asked, signals.received) == ([signal.SIGTERM], signal.SIGTERM)
        with pytest.raises(Interrupted) as ended:
            signal.raise_signal(signal.SIGINT)
    assert ended.value.signal_number == signal.SIGINT
    assert asked == [signal.SIGTERM]


TWO_AT_ONCE = """
import signal
from cifar_ray.cluster.signals import Signals
from cifar_ray.errors import Interrupted

both = {signal.SIGINT, signal.SIGTERM}
with Signals() as signals:
    for _ in range(50):
        asked = []
        signals.ask_with(asked.append)
        signals.received, signals._has_signal = None, False
        signal.pthread_sigmask(signal.SIG_BLOCK, both)
        for number in both:
            signal.raise_signal(number)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
        except Interrupted:
            assert len(asked) <= 1, asked
        else:
            raise AssertionError("no signal ended the block")
"""


def test_of_two_signals_at_once_one_asks_and_one_ends() -> None:
    """In a process of its own: two signals on one alternate stack overflow it where torch has used a processor's AMX tiles before."""
    ended = subprocess.run([sys.executable, "-c", TWO_AT_ONCE], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_before_there_is_anything_to_save_the_first_signal_ends() -> None:
    with Signals(), pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)
