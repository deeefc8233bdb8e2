"""How commands end. Exit code 1 says that a goal was not reached, or that networks differ, and nothing else."""

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext, suppress

import pytest
import torch

from shoal.cli import main
from shoal.cli.console import Session
from shoal.errors import DataError, NotReachedError, Terminated, UsageError

SHOAL = [sys.executable, "-m", "shoal"]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}


def started(*words, cwd, **pipes):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **pipes}
    return subprocess.Popen([*SHOAL, *map(str, words)], cwd=cwd, env=environment(), text=True, **pipes)


def huge():
    torch.empty(1 << 60, dtype=torch.uint8)


def leave():
    sys.exit(1)


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    ("work", "code", "kind"),
    [
        (raising(NotReachedError("too much")), 1, "not_reached"),
        (raising(DataError("none")), 2, "data"),
        (raising(MemoryError()), 2, "memory"),
        (huge, 2, "memory"),
        (raising(torch.OutOfMemoryError("CUDA out of memory")), 2, "memory"),
        (raising(AttributeError("a slip")), 2, "error"),
        (raising(BrokenPipeError("a worker has died")), 2, "error"),
        (raising(RecursionError()), 2, "error"),
        (leave, 2, "error"),
        (raising(KeyboardInterrupt()), 130, "interrupted"),
        (raising(Terminated()), 143, "interrupted"),
    ],
)
@pytest.mark.parametrize("debug", [True, False])
def test_every_error_has_its_exit_code(work, code, kind, as_json, debug, capsys):
    session = Session(as_json=as_json, debug=debug)
    with pytest.raises(SystemExit) as left, session.guarded():
        work()
    assert left.value.code == code
    said = capsys.readouterr()
    if as_json:
        assert json.loads(said.out)["error"]["kind"] == kind
    else:
        assert said.out == ""


@pytest.mark.parametrize("seed", [10**30, -(10**30), 2**64, "one"])
def test_a_seed_that_torch_does_not_take_is_wrong_use(seed, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["shoal", "compress", "--json", "--seed", str(seed)])
    with pytest.raises(SystemExit) as left:
        main()
    error = json.loads(capsys.readouterr().out)["error"]
    assert (left.value.code, error["kind"]) == (2, "usage")
    assert "--seed" in error["message"]


def test_memory_that_is_short_for_the_error_message_too(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["shoal", "trace", "nosuch"])
    monkeypatch.setattr(Session, "fail", lambda self, error: raising(MemoryError())())
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "out of memory" in capfd.readouterr().err


@pytest.mark.parametrize("words", ["--help", "--version", "trace digits-resnet --json"])
def test_output_that_nobody_reads_ends_the_command_quietly(words, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = started(*words.split(), cwd=tmp_path, stdout=writer)
    os.close(writer)
    _, err = command.communicate(timeout=120)
    assert command.returncode == 141
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_an_interrupted_command(tmp_path):
    # A shell turns Ctrl-C off for what it runs in the background, and a process that it started would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = started("compress", "--latency", "0.5", "--out", "o", cwd=tmp_path)
    signal.signal(signal.SIGINT, before)
    for line in command.stderr:
        if "stand-ins" in line or "tracing" in line:
            break
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=120)
    assert command.returncode == 130
    assert "interrupted. The same command with --out o resumes this run." in err
    assert "Traceback" not in out + err


CHATTY = """
import ctypes, os
from torch import nn
print("imported")
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
    def forward(self, x):
        print("running")
        os.write(1, b"from a descriptor")
        ctypes.CDLL(None).puts(b"from C")
        return self.layer(x.flatten(1))
def build():
    return Net()
"""


def test_what_the_users_code_prints_is_not_in_the_document(tmp_path):
    (tmp_path / "net.py").write_text(CHATTY)
    command = started("certify", "net.py:build", "net.py:build", "digits", "--json", cwd=tmp_path)
    out, err = command.communicate(timeout=120)
    assert json.loads(out)["verdict"] == "different"
    assert command.returncode == 1
    for words in ("imported", "running", "from a descriptor", "from C"):
        assert words in err


def test_standard_output_is_what_it_was_after_a_command_in_a_process_that_goes_on(capfd, monkeypatch):
    monkeypatch.setattr(sys, "stdout", open(1, "w", closefd=False))  # noqa: SIM115 - the descriptor itself
    monkeypatch.setattr(sys, "stderr", open(2, "w", closefd=False))  # noqa: SIM115
    for work, code in ((lambda: None, None), (raising(DataError("none")), 2)):
        with suppress(SystemExit), Session(as_json=True).guarded():
            os.write(1, b"meanwhile ")
            work()
        os.write(1, b"afterwards ")
        sys.stdout.write("too\n")
        sys.stdout.flush()
        said = capfd.readouterr()
        assert said.err.startswith("meanwhile ")
        assert said.out.endswith("afterwards too\n")
        assert ("error" in said.out) == (code == 2)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_was_closed_from_the_beginning(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["shoal", "--version"])
    monkeypatch.setattr(sys, name, None)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    with Session(as_json=True).guarded():
        Session(as_json=True).print_json({"a": 1})
    assert ("1" in capsys.readouterr().out) == (name == "stderr")


def test_mixed_precision_is_for_recovery_and_recovers_in_it(run, monkeypatch):
    words = ("digits-resnet", "digits", "--remove", "1", "--bf16", "--limit", "60")
    code, _, err = run("compress", *words)
    assert code == 2
    assert "--bf16 is for recovery, and there is none" in err
    asked = []

    def compress(*_, recovery, **__):
        asked.append((recovery.settings.precision, recovery.required))
        raise UsageError("enough", "That was all.")

    monkeypatch.setattr("shoal.cli.compress.compress", compress)
    run("compress", *words, "--recover", "2")
    run("compress", *words[:2], "--macs", "0.8", "--bf16", "--limit", "60")
    run("compress", *words[:2], "--macs", "0.8", "--limit", "60")
    assert asked == [("bf16", True), ("bf16", True), ("fp32", False)]


def test_trackers_where_nothing_learns_are_refused(run, monkeypatch):
    monkeypatch.setattr("shoal.cli.loading.tracking", lambda names: nullcontext())
    for goal in (("--remove", "1"), ("--macs", "0.8", "--recover", "none")):
        code, _, err = run("compress", "digits-resnet", "digits", *goal, "--track", "tensorboard", "--limit", "60")
        assert (code, "--track is for what learns, and nothing does" in err) == (2, True)


def test_lora_without_recovery_and_for_a_network_of_another_kind_is_refused(run):
    code, _, err = run("compress", "digits-resnet", "digits", "--remove", "1", "--lora", "4", "--limit", "60")
    assert code == 2
    assert "--lora is for recovery, and there is none" in err
    words = ("--remove", "1", "--recover", "2", "--lora", "4", "--limit", "60", "--out", "o")
    code, _, err = run("compress", "digits-resnet", "digits", *words)
    assert code == 2
    assert "LoRA is for networks of transformers" in err
