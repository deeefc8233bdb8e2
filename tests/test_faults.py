"""A small part of `make faults`: commands that are killed, starved and doubled lose nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy

SCRIPTS = Path(__file__).parent.parent / "scripts" / "faults"
FEW = "--random 1 --writes 3 --inside 1 --interruptions 2 --disks 1 --commands".split()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("faults") / "results.json"
    command = [sys.executable, str(SCRIPTS), *FEW, "compress --remove", "--results", str(path)]
    ran = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert path.exists(), ran.stderr[-3000:]
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "writes", "inside", "interruptions", "disks", "owners"])
def test_nothing_is_lost(results, kind):
    lost = {item["command"]: item["lost"] for item in results[kind]}
    assert lost == {"compress --remove": []}


@pytest.mark.slow
def test_workers_hosts_and_a_head_that_fail_leave_the_record_as_it_is(tmp_path):
    """A small `make faults-workers`, which ends with exit code 1 where a record differs."""
    pytest.importorskip("ray")
    path = tmp_path / "results.json"
    few = "--kills 6 --batches 12 --partition 20 --jobs 3".split()
    subprocess.run([sys.executable, str(SCRIPTS / "workers.py"), *few, "--out", str(path)], check=True)
    results = json.loads(path.read_text())
    assert all(result["same"] for result in results)
    killed = [result for result in results if "kills" in result]
    assert len(killed) == 2
    for result in killed:
        assert (result["kills"], result["begun_for_nothing"]) == (3, 0)
        assert result["begun"] >= result["tasks"] == 12 * result["scans"]
    (headless,) = (result for result in results if "first_exit" in result)
    assert headless["lost"] == []
    assert headless["kept"] >= 20
    assert headless["first_exit"] != 0
    assert len(results) - 3 in (2, 3)  # hosts; without root: a limit and a stopped worker


@pytest.mark.slow
def test_every_kill_was_one(results):
    counts = {kind: sum(item["kills"] for item in results[kind]) for kind in ("random", "writes", "inside")}
    assert counts == {"random": 1, "writes": 3, "inside": 1}
    unfinished = sum(item["ends"].get("killed, repeated to the end", 0) for item in results["writes"])
    assert unfinished >= 1, "kills that met a run which was finished prove little"
    assert [item["refused"] for item in results["disks"]] == [1]


def test_the_page_is_what_was_measured(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from page import write_page

    root = SCRIPTS.parent.parent
    measured = json.loads((root / "benchmarks/results/faults.json").read_text())
    write_page(tmp_path / "page.md", measured, root / "benchmarks/results/fuzz.json")
    assert (tmp_path / "page.md").read_text() == (root / "docs/reliability.md").read_text()
    assert "| nothing |" in (tmp_path / "page.md").read_text()


def test_the_comparison_sees_what_was_lost(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import compare
    import numpy as np
    from safetensors.numpy import save_file

    def folder(name, *, weight=0.0, journal=("1", "2"), record=None):
        path = tmp_path / name
        path.mkdir()
        save_file({"w": np.array([1.0, weight])}, path / "model.safetensors")
        (path / "progress.jsonl").write_text("".join(f'{{"n": {line}}}\n' for line in journal))
        (path / "record.json").write_text(json.dumps({"seconds": len(name), "kl": 0.5} | (record or {})))
        return path

    whole = folder("whole")
    assert compare.differences(whole, folder("the-same")) == []
    assert compare.differences(whole, folder("sign", weight=-0.0)) == ["model.safetensors differs"]
    assert compare.differences(whole, folder("again", journal=("1", "2", "2"))) == ["progress.jsonl differs"]
    assert compare.differences(whole, folder("figure", record={"kl": 0.25})) == ["record.json differs"]
    left = folder("left")
    (left / ".model.safetensors.partial").touch()
    assert compare.differences(whole, left) == ["other files: ['.model.safetensors.partial']"]
    assert compare.repeated([b"1"], [b"1", b"2"]) == []
    assert compare.repeated([b"1", b"2"], [b"1", b"3"]) != []
    assert compare.repeated([], [b"1", b"1"]) == ["a journal holds a line twice"]
