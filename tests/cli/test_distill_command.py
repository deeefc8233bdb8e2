"""`shoal distill` and `compress --recover`: documents, exit codes, resuming, what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import shoal
from shoal.errors import UsageError
from shoal.recover.distill import Distillation

HERE = Path(__file__).parent.parent
NETWORK, DATA = f"{HERE}/tiny.py:network", f"{HERE}/tiny.py:data"


def test_a_cut_network_learns_from_the_original_and_loads(run, tmp_path):
    assert run("compress", NETWORK, DATA, "--remove", 6, "--out", "cut", "--batch-size", 16)[0] in (0, 1)
    words = (
        "distill",
        "cut",
        DATA,
        "--trust-code",
        "--teacher",
        NETWORK,
        "--budget",
        30,
        "--batch-size",
        16,
        "--out",
        "o",
        "--json",
    )
    code, out, err = run(*words)
    document = json.loads(out)
    assert code == 0
    assert document["recovery"]["divergence_after"] < document["recovery"]["divergence_before"]
    assert {"before", "after", "teacher_quality", "quality_after"} <= set(document)
    assert "recovering (steps)" in err
    names = {one.name for one in (tmp_path / "o").iterdir()}
    assert {"model.safetensors", "plan.json", "record.json", "recovery.jsonl", "run.json"} <= names
    assert shoal.load(tmp_path / "o", trust_code=True)(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_labels_that_do_not_fit_are_refused_before_anything_is_learned(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Distillation, "train_step", lambda self: pytest.fail("it learns"))
    bad = f"{HERE}/tiny.py:bad_labels"
    code, _, err = run("distill", NETWORK, bad, "--teacher", NETWORK, "--budget", 6, "--out", "o")
    assert code == 2
    assert "does not fit a model with 10 classes" in err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("shard", [True, False])
def test_what_is_divided_is_never_whole_on_the_device(run, monkeypatch, shard):
    places = []

    def opened(session, spec, weights, device):
        places.append(device)
        raise UsageError("that is enough")

    monkeypatch.setattr("shoal.cli.distill.pick_device", lambda name: "cuda")
    monkeypatch.setattr("shoal.cli.distill.open_network", opened)
    run("distill", NETWORK, DATA, "--teacher", NETWORK, "--budget", 6, *(["--shard"] if shard else []))
    assert places == [("cpu" if shard else "cuda")]


def test_the_same_command_goes_on(run, tmp_path, monkeypatch):
    run("compress", NETWORK, DATA, "--remove", 6, "--out", "cut", "--batch-size", 16)
    words = ("distill", "cut", DATA, "--teacher", NETWORK, "--budget", 6, "--lr", 0.01, "--out", "o")
    step = Distillation.train_step

    def interrupted(self):
        if self.state.step == 3:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Distillation, "train_step", interrupted)
    code, _, err = run(*words)
    assert code == 130
    assert "resumes from the last checkpoint" in err
    monkeypatch.setattr(Distillation, "train_step", step)
    code, out, _ = run(*words)
    assert code == 0
    assert "resuming the run in o" in out
    assert "recovery: 6 steps" in out


def test_a_student_that_is_the_teacher_has_nothing_to_win_back(run):
    code, out, _ = run("distill", NETWORK, DATA, "--teacher", NETWORK, "--budget", 6, "--out", "o")
    assert code == 1
    assert "there was nothing to recover" in " ".join(out.split())


def test_wrong_use(run):
    words = ("distill", NETWORK, DATA, "--teacher", NETWORK)
    for more, said in (
        (("--budget", "soon"), "expected steps or a time"),
        (("--budget", "none"), "the budget of the distillation is none"),
        (("--lr", "-1"), "the learning rate is -1"),
    ):
        code, _, err = run(*words, *more)
        assert (code, said in err) == (2, True), err
    for goal, said in (
        (("--remove", 1, "--recover", 4), "--race does nothing with --remove"),
        (("--latency", 0.6, "--recover", "none"), "--race is for plans that are recovered"),
    ):
        code, _, err = run("compress", NETWORK, DATA, *goal, "--race", 3)
        assert (code, said in err) == (2, True)
    code, _, err = run("compress", NETWORK, DATA, "--remove", 1, "--unlabelled", DATA)
    assert (code, "--unlabelled is for recovery" in err) == (2, True)


def test_a_dry_run_writes_nothing(run, tmp_path):
    code, out, _ = run("distill", NETWORK, DATA, "--teacher", NETWORK, "--dry-run", "--json")
    assert (code, json.loads(out)["budget"]) == (0, "300 seconds")
    assert list(tmp_path.iterdir()) == []


def test_compress_recovers_with_unlabelled_data(run, tmp_path):
    words = ("--remove", 4, "--recover", 8, "--unlabelled", DATA, "--batch-size", 16, "--out", "o", "--json")
    code, out, _ = run("compress", NETWORK, DATA, *words)
    document = json.loads(out)
    assert code == 0
    assert document["recovery"]["steps"] == 8
    assert any(note.startswith("recovery: 8 steps") for note in document["notes"])
    assert (tmp_path / "o" / "recovery.jsonl").exists()


UNTRACEABLE = """
import torch
from torch import nn


class Outside(torch.autograd.Function):
    \"\"\"Leaves torch half-way.\"\"\"

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return torch.from_numpy(x.detach().numpy() @ weight.detach().numpy())

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        return grad @ weight.T, x.T @ grad


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(64, 10) / 4)

    def forward(self, x):
        return Outside.apply(x.flatten(1), self.weight)


def network():
    return Net()
"""


def test_a_student_that_cannot_be_traced_learns_all_the_same(run, tmp_path):
    (tmp_path / "untraceable.py").write_text(UNTRACEABLE)
    words = ("--budget", 30, "--lr", 0.01, "--batch-size", 16, "--out", "o", "--json")
    code, out, err = run("distill", "untraceable.py:network", DATA, "--teacher", NETWORK, *words)
    assert code == 0, err
    document = json.loads(out)
    assert document["recovery"]["divergence_after"] < document["recovery"]["divergence_before"]
    assert "the student cannot be traced" in document["warnings"][0]
    assert json.loads((tmp_path / "o" / "plan.json").read_text())["network"]["chain"] == []


def test_the_metrics_of_the_task_stand_in_the_record(run, tmp_path):
    words = (f"{HERE}/tiny.py:noisy", DATA, "--teacher", NETWORK, "--budget", 20, "--batch-size", 16)
    code, out, _ = run("distill", *words, "--task", "embedding", "--out", "o")
    record = json.loads((tmp_path / "o" / "record.json").read_text())
    before, after = (record[side]["metrics"] for side in ("before", "after"))
    assert code == 0
    assert [metric["name"] for metric in before] == [metric["name"] for metric in after]
    cosine = {side: record[side]["metrics"][-1]["compressed"] for side in ("before", "after")}
    assert cosine["after"] > cosine["before"]
    assert record["after"]["cosine_distance"] == pytest.approx(1 - cosine["after"], abs=1e-6)
    assert "Cosine with the original" in out
    assert f"one minus the cosine with the teacher's output on test: {record['before']['cosine_distance']:.4g}" in out
    assert "squared error" not in out
    code, _, err = run("distill", *words, "--task", "nothing", "--out", "p")
    assert code == 2
    assert "there is no task 'nothing'" in err


@pytest.mark.slow
def test_two_processes_learn_together_and_the_first_one_speaks_and_saves(run, tmp_path):
    run("compress", NETWORK, DATA, "--remove", 6, "--out", "cut", "--batch-size", 16)
    words = ["distill", "cut", DATA, "--trust-code", "--teacher", NETWORK, "--budget", "30", "--batch-size", "16"]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m", "shoal"]
    done = subprocess.run(
        [sys.executable, *launcher, *words, "--device", "cpu", "--out", "o", "--json"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["recovery"]["processes"] == 2
    assert document["recovery"]["divergence_after"] < document["recovery"]["divergence_before"]
    assert json.loads((tmp_path / "o" / "record.json").read_text())["recovery"]["processes"] == 2


DETECTORS = """
import sys
sys.path.insert(0, {tests!r})
import torch
from detectors import detector

def teacher():
    return detector("one stage")

def student():
    network = detector("one stage")
    torch.nn.init.normal_(network.backbone.blocks[1].conv2.weight, generator=torch.Generator().manual_seed(1))
    return network

def batch(seed, boxes):
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    truth = {{"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.ones(len(boxes), dtype=torch.int64)}}
    return [*images], [truth, truth]

def data():
    return [batch(seed, [[4.0, 4.0, 40.0, 40.0]]) for seed in range(6)], [batch(9, [[4.0, 4.0, 40.0, 40.0]])]

def nothing():
    return [batch(seed, []) for seed in range(6)], [batch(9, [])]

def backwards():
    return [batch(seed, [[40.0, 4.0, 4.0, 40.0]]) for seed in range(6)], [batch(9, [[4.0, 4.0, 40.0, 40.0]])]
"""


@pytest.mark.slow
def test_a_detector_has_its_precision_before_and_after(run, tmp_path):
    pytest.importorskip("pycocotools", reason="pip install 'shoal[tasks]'")
    (tmp_path / "detectors.py").write_text(DETECTORS.format(tests=str(HERE)))
    words = ("distill", "detectors.py:student", "detectors.py:{}", "--teacher", "detectors.py:teacher", "--budget", 3)

    def distil(data):
        place = [word.format(data) if isinstance(word, str) else word for word in words]
        return run(*place, "--lr", 0.001, "--out", data, "--json")

    code, out, _ = distil("data")
    assert code in (0, 1), out
    document = json.loads(out)
    for side in ("before", "after"):
        [precision] = document[side]["metrics"]
        assert (precision["name"], precision["against"], precision["n"]) == ("map", "labels", 2)
    _, out, _ = distil("nothing")
    document = json.loads(out)
    assert document["before"]["metrics"] == document["after"]["metrics"] == []
    assert any("mAP of the original is nan on 2 samples" in warning for warning in document["warnings"])
    code, out, _ = distil("backwards")
    assert code == 2
    assert "a box that ends before it begins" in json.loads(out)["error"]["message"]
    assert not (tmp_path / "backwards" / "recovery.jsonl").exists()
