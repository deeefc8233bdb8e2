import errno
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import networks
from shoal.errors import FolderError
from shoal.files.locking import LOCK, OWNER
from shoal.store.folder import PROGRESS, RECORD, RUN, RunFolder

ARGUMENTS = {"model": "digits-resnet", "goal": {"remove": 2}, "seed": 0}


def claimed(path, command="compress", **changes):
    return RunFolder(path, command, ARGUMENTS | changes)


@pytest.mark.parametrize("exists", [True, False])
def test_claims_an_empty_or_a_new_folder(tmp_path, exists):
    path = tmp_path if exists else tmp_path / "deep" / "run"
    folder = claimed(path)
    assert not folder.resumed
    claim = json.loads((path / RUN).read_text())
    assert claim["command"] == "compress"
    assert claim["arguments"] == ARGUMENTS
    assert folder.measured() == []


def test_the_same_command_resumes(tmp_path):
    claimed(tmp_path).append({"kind": "step", "n": 1})
    again = claimed(tmp_path, goal={"remove": 2})
    assert again.resumed
    assert again.measured() == [{"kind": "step", "n": 1}]
    again.append({"kind": "step", "n": 2})
    again.release()
    assert [line["n"] for line in claimed(tmp_path).measured()] == [1, 2]


def test_the_seconds_of_all_attempts_count(tmp_path):
    """A killed attempt took until it last wrote a file; the pause before the next one does not count."""
    first = claimed(tmp_path)
    assert 0 <= first.seconds < 5
    first.append({"n": 1})
    first.release()
    for attempt, seconds in enumerate((100.0, 20.0)):
        claim = json.loads((tmp_path / RUN).read_text())
        claim["began"] -= 1000.0
        (tmp_path / RUN).write_text(json.dumps(claim))
        os.utime(tmp_path / PROGRESS, (claim["began"] + seconds,) * 2)
        again = claimed(tmp_path)
        assert again.resumed
        assert again.seconds == pytest.approx((100, 120)[attempt], abs=5)
        again.release()
    assert json.loads((tmp_path / RUN).read_text())["seconds"] == pytest.approx(120, abs=1)


@pytest.mark.parametrize(
    "clock", [{}, {"seconds": -5.0, "began": 1.0}, {"seconds": "x", "began": 1}, {"seconds": 1e300, "began": True}]
)
def test_seconds_that_are_none_count_nothing(tmp_path, clock):
    claimed(tmp_path).release()
    claim = json.loads((tmp_path / RUN).read_text())
    del claim["seconds"], claim["began"]
    (tmp_path / RUN).write_text(json.dumps(claim | clock))
    assert 0 <= claimed(tmp_path).seconds < 5


def test_tuples_and_lists_are_the_same_arguments(tmp_path):
    RunFolder(tmp_path, "compress", {"include": ("a", "b")})
    assert RunFolder(tmp_path, "compress", {"include": ["a", "b"]}).resumed


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FolderError, match=r"is not empty\n.*Choose a new --out"):
        claimed(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["thesis.tex"]


def test_somebody_elses_partial_file_is_not_ours(tmp_path):
    (tmp_path / "download.partial").write_text("half a film")
    with pytest.raises(FolderError, match="is not empty"):
        claimed(tmp_path)
    assert (tmp_path / "download.partial").exists()


def test_a_finished_folder_is_refused(tmp_path):
    claimed(tmp_path)
    (tmp_path / RECORD).write_text("{}")
    with pytest.raises(FolderError, match="holds a finished run"):
        claimed(tmp_path)


def test_another_command_is_refused(tmp_path):
    claimed(tmp_path, "scan")
    with pytest.raises(FolderError, match="holds an unfinished run of `shoal scan`"):
        claimed(tmp_path)


def test_other_arguments_are_named(tmp_path):
    claimed(tmp_path)
    with pytest.raises(FolderError, match=r"other arguments: seed was 0, now 1\n.*Repeat that command"):
        claimed(tmp_path, seed=1)
    with pytest.raises(FolderError, match=r"goal.max_drop was None, now 1.0, goal.remove was 2, now None, seed was 0"):
        claimed(tmp_path, seed=1, goal={"max_drop": 1.0})
    with pytest.raises(FolderError, match="limit was None, now 100"):
        claimed(tmp_path, limit=100)
    assert claimed(tmp_path).resumed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{half a", "cannot be read"),
        ("[1, 2]", "was not written by Shoal"),
        ('{"command": "compress", "arguments": 3}', "was not written by Shoal"),
    ],
)
def test_a_damaged_claim(tmp_path, text, message):
    (tmp_path / RUN).write_text(text)
    with pytest.raises(FolderError, match=message):
        claimed(tmp_path)


@pytest.mark.parametrize("torn", ['{"kind": "st', '{"kind": "step", "n": 2', "\x00\x00\x00", "{"])
def test_a_torn_last_line_is_dropped(tmp_path, torn):
    claimed(tmp_path).append({"n": 1})
    whole = (tmp_path / PROGRESS).read_text()
    with (tmp_path / PROGRESS).open("a") as file:
        file.write(torn)
    folder = claimed(tmp_path)
    assert folder.measured() == [{"n": 1}]
    assert (tmp_path / PROGRESS).read_text() == whole
    folder.append({"n": 2})
    assert folder.measured() == [{"n": 1}, {"n": 2}]


def test_a_whole_line_without_its_newline_is_kept(tmp_path):
    for number in (1, 2):
        claimed(tmp_path).append({"n": number})
    (tmp_path / PROGRESS).write_bytes((tmp_path / PROGRESS).read_bytes()[:-1])
    folder = claimed(tmp_path)
    assert folder.measured() == [{"n": 1}, {"n": 2}]
    folder.append({"n": 3})
    assert [line["n"] for line in folder.measured()] == [1, 2, 3]


def test_leftover_partial_files_are_removed(tmp_path):
    claimed(tmp_path)
    left = tmp_path / ".plan.json.abc123.partial"
    left.write_text("half a plan")
    claimed(tmp_path)
    assert not left.exists()


def test_a_crash_while_claiming_leaves_a_folder_that_can_be_claimed(tmp_path):
    left = tmp_path / ".run.json.abc123.partial"
    left.write_text('{"comm')
    folder = claimed(tmp_path)
    assert not folder.resumed
    assert {one.name for one in tmp_path.iterdir()} == {RUN, LOCK, OWNER}


def test_a_file_in_place_of_the_folder(tmp_path):
    place = tmp_path / "file"
    place.write_text("")
    for path in (place, place / "below"):
        with pytest.raises(FolderError, match=r"cannot use '.*' as the output folder"):
            claimed(path)


def test_a_second_owner_is_refused_by_name_and_deletes_nothing(tmp_path):
    with claimed(tmp_path) as first:
        first.append({"n": 1})
        half = tmp_path / ".model.safetensors.abc.partial"
        half.write_text("half a file that the first is writing")
        command = re.escape(shlex.join(sys.argv)[:200])
        owner = rf"in use by process {os.getpid()} on .* since 20.*: {command}\n.*Wait"
        with pytest.raises(FolderError, match=owner):
            claimed(tmp_path)
        assert half.exists()
        first.append({"n": 2})
    assert claimed(tmp_path).measured() == [{"n": 1}, {"n": 2}]
    assert not half.exists()


def test_a_fresh_folder_is_locked_too_and_not_taken_away(tmp_path):
    with claimed(tmp_path / "new"):
        with pytest.raises(FolderError, match="in use"):
            claimed(tmp_path / "new")
        with pytest.raises(FolderError, match="in use"):  # by another way to it
            claimed(tmp_path / "new" / ".." / "new")
        assert (tmp_path / "new" / RUN).exists()


def test_an_error_leaves_no_empty_shell_and_hides_nothing(tmp_path):
    def fail(path, remove):
        with claimed(path):
            if remove:
                shutil.rmtree(path)
            raise ZeroDivisionError

    for remove in (False, True):
        with pytest.raises(ZeroDivisionError):
            fail(tmp_path / "run", remove)
        assert not (tmp_path / "run").exists()


def test_what_was_measured_stays_after_an_error(tmp_path):
    def fail():
        with claimed(tmp_path) as folder:
            folder.append({"n": 1})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert claimed(tmp_path).measured() == [{"n": 1}]


def test_a_folder_that_cannot_be_claimed_is_taken_away_again(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FolderError, match="No space left"):
        claimed(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_half_a_folder_of_a_killed_command_is_removed(tmp_path):
    claimed(tmp_path)
    (tmp_path / ".hf-12.partial").mkdir()
    (tmp_path / ".hf-12.partial" / "config.json").write_text("{}")
    claimed(tmp_path)
    assert not (tmp_path / ".hf-12.partial").exists()


OWNING = """
import sys, time
from pathlib import Path
from shoal.store import RunFolder

folder = RunFolder(Path(sys.argv[1]), "compress", {"seed": 0})
folder.append({"n": 1})
print("owned", flush=True)
time.sleep(60)
"""


def test_the_lock_of_a_killed_process_is_gone_with_it(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", OWNING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "owned\n"
        with pytest.raises(FolderError, match=f"in use by process {child.pid} on"):
            RunFolder(tmp_path, "compress", {"seed": 0})
    finally:
        child.kill()
        child.wait()
    with RunFolder(tmp_path, "compress", {"seed": 0}) as folder:
        assert folder.resumed
        assert folder.measured() == [{"n": 1}]


@pytest.mark.slow
def test_two_that_begin_at_once(tmp_path):
    command = [sys.executable, "-c", OWNING.replace("time.sleep(60)", "time.sleep(3)"), str(tmp_path / "run")]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [(*child.communicate(), child.returncode) for child in children]
    assert sorted(code for _, _, code in ended) == [0, 1]
    assert all("is in use" in errors for _, errors, code in ended if code)


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_while_journalling(tmp_path, monkeypatch):
    folder = claimed(tmp_path)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FolderError, match=r"progress.jsonl': No space left on device\n.*then resume"):
        folder.append({"n": 1})


KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path

import torch

torch.set_num_threads(1)
import networks
from shoal.errors import FolderError
from shoal.pipeline import MeasureConfig, compress
from shoal.plan import read_plan
from shoal.store import RunFolder, load

home, kills = Path(sys.argv[1]), int(sys.argv[2])
generator = torch.Generator().manual_seed(0)
data = [torch.randn(16, 1, 8, 8, generator=generator) for _ in range(4)]
torch.manual_seed(3)
network = networks.randomised(networks.PreactNet(8, 6))
settings = MeasureConfig(images=64, validation_images=64, latency_seconds=0.001)


def attempt(path):
    journal = RunFolder(path, "compress", {"remove": 4})
    result = compress(network, data, remove=4, settings=settings, journal=journal)
    result.save(path, claimed=True)
    return journal


def outputs(path):
    with torch.no_grad():
        return load(path, model=network)(data[0])


def readable(path):
    if not path.exists():
        return
    for name in ("run.json", "plan.json", "record.json"):
        if (path / name).exists():
            json.loads((path / name).read_text())
    if (path / "plan.json").exists():
        load(path, model=network)


attempt(home / "whole")
start = time.perf_counter()
attempt(home / "second")  # the first one warmed up what the children inherit
wall = time.perf_counter() - start
plan, expected = read_plan(home / "whole" / "plan.json"), outputs(home / "whole")
generator = random.Random(0)
interrupted = unfinished = 0
path = home / "killed"
while unfinished < kills and interrupted < 60:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            attempt(path)
            code = 0
        finally:
            os._exit(code)
    time.sleep(generator.uniform(0, wall))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    interrupted += 1
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0, status
    readable(path)
    if (path / "record.json").exists():
        assert read_plan(path / "plan.json") == plan
        assert torch.equal(outputs(path), expected)
        path = home / f"killed-{interrupted}"
    else:
        unfinished += 1
if not (path / "record.json").exists():
    attempt(path)
assert read_plan(path / "plan.json") == plan
assert torch.equal(outputs(path), expected)
assert not list(path.glob(".*.partial"))
steps = [json.loads(line) for line in (path / "progress.jsonl").read_text().splitlines()]
assert [line["kind"] for line in steps] == ["worths"] + 4 * ["step"], steps
print("kills that left a run unfinished:", unfinished)
"""


def kill_and_repeat(tmp_path, kills):
    places = [str(Path(networks.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(kills)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert f"unfinished: {kills}" in ran.stdout


@pytest.mark.slow
def test_a_killed_run_is_repeated_to_the_same_end(tmp_path):
    kill_and_repeat(tmp_path, 4)


@pytest.mark.slow
def test_a_run_killed_many_times(tmp_path):
    kill_and_repeat(tmp_path, 40)
