"""SIGTERM and a closed terminal end a command as Ctrl-C does, and what follows at once does not break that off."""

import os
import signal
import sys
import threading

import pytest

from shoal.cli import main
from shoal.cli.signals import ending_in_order
from shoal.errors import Terminated

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


def send(name):
    os.kill(os.getpid(), getattr(signal, name))


def handlers():
    return [signal.getsignal(getattr(signal, name)) for name in NAMES]


@pytest.fixture(autouse=True)
def usual_handlers():
    """As a command finds them; a job in the background has SIGINT turned off."""
    before = handlers()
    for name, usual in zip(NAMES, (signal.default_int_handler, signal.SIG_DFL, signal.SIG_DFL), strict=True):
        signal.signal(getattr(signal, name), usual)
    yield
    for name, handler in zip(NAMES, before, strict=True):
        signal.signal(getattr(signal, name), handler)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_it_is_raised_where_ctrl_c_is_caught(name, code):
    before = handlers()
    with pytest.raises(KeyboardInterrupt) as ended, ending_in_order():
        send(name)
    assert (type(ended.value), ended.value.exit_code, str(ended.value)) == (Terminated, code, name)
    assert handlers() == before


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("second", NAMES)
def test_a_second_one_at_once_does_not_break_off_the_tidying_up(first, second, monkeypatch):
    tidied = []

    def leave():
        try:
            send(first)
        finally:
            send(second)
            tidied.append(True)

    with pytest.raises(KeyboardInterrupt), ending_in_order():
        leave()
    assert tidied
    monkeypatch.setattr("shoal.cli.signals._ONCE", 0.0)  # as if some time had passed
    with pytest.raises(KeyboardInterrupt), ending_in_order():
        leave()
    assert len(tidied) == 1


def test_what_whoever_started_the_process_has_turned_off_stays_off():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with ending_in_order():
        send("SIGHUP")
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_thread_that_runs_a_command_changes_nothing():
    seen = []

    def work():
        with ending_in_order():
            seen.append(handlers())

    before = handlers()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_command_that_is_ended_says_how_to_go_on(name, code, run, monkeypatch):
    monkeypatch.setattr("shoal.cli.tools.run_trace", lambda session, request: send(name))
    ended, out, err = run("trace", "digits-resnet")
    assert (ended, out, err) == (code, "", "interrupted. The same command begins anew.\n")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_before_the_command_itself_begins(name, code, monkeypatch, capfd):
    monkeypatch.setattr("shoal.cli.app.version", lambda _: send(name))
    monkeypatch.setattr(sys, "argv", ["shoal", "--version"])
    with pytest.raises(SystemExit) as left:
        main()
    assert (left.value.code, capfd.readouterr().err.strip()) == (code, "interrupted.")
