import os
import signal
import threading

import pytest

from siamusic_fast.processes import signals
from siamusic_fast.processes.signals import Stopped, StopSignals


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_is_noted_and_the_run_decides_when_to_obey(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with StopSignals() as received:
        assert received.received == 0
        os.kill(os.getpid(), number)
        assert received.received == number
    assert signal.getsignal(number) is before
    assert Stopped(number).exit_code == code


def test_a_second_ctrl_c_stops_at_once_unless_it_is_an_echo_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with StopSignals() as received:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        monkeypatch.setattr(signals, "_REPEATED_WITHIN", 0.0)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
        assert received.received == signal.SIGTERM


def test_what_the_system_repeats_breaks_no_save(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_REPEATED_WITHIN", 0.0)
    with StopSignals() as received:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert received.received == signal.SIGINT


def test_under_nohup_a_terminal_may_go() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as received:
            os.kill(os.getpid(), signal.SIGHUP)
            assert received.received == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_where_nothing_needs_saving_the_first_signal_stops_at_once() -> None:
    with StopSignals() as received:
        with pytest.raises(Stopped) as stopped, received.at_once():
            os.kill(os.getpid(), signal.SIGTERM)
        assert stopped.value.exit_code == 143
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped), received.at_once():
            pytest.fail("A signal that came before was forgotten.")


def test_other_threads_leave_the_handlers_alone() -> None:
    found = []

    def look() -> None:
        with StopSignals():
            found.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before]


def test_what_python_makes_of_a_stop_while_it_creates_a_class_is_a_stop() -> None:
    class Named:
        def __set_name__(self, owner: type, name: str) -> None:
            signal.raise_signal(signal.SIGTERM)

    with StopSignals() as signals, pytest.raises(Stopped), signals.at_once():
        type("Owner", (), {"named": Named()})
