"""What two signals do, as the operating system and Python deliver them."""

import signal

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


def test_of_two_signals_at_once_one_asks_and_one_ends() -> None:
    asked: list[int] = []
    both = {signal.SIGINT, signal.SIGTERM}
    with Signals() as signals:
        signals.ask_with(asked.append)
        for _ in range(50):
            asked.clear()
            signals.received, signals._came = None, False
            signal.pthread_sigmask(signal.SIG_BLOCK, both)
            for number in both:
                signal.raise_signal(number)
            with pytest.raises(Interrupted):
                signal.pthread_sigmask(signal.SIG_UNBLOCK, both)
            assert len(asked) <= 1


def test_before_there_is_anything_to_save_the_first_signal_ends() -> None:
    with Signals(), pytest.raises(Interrupted):
        signal.raise_signal(signal.SIGTERM)
