"""`shoal train`: documents, exit codes, resuming, what is refused."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import shoal
from shoal.cli.train import with_classes
from shoal.sources import load_data

HERE = Path(__file__).parent.parent
NETWORK, PLAIN = f"{HERE}/tiny.py:network", f"{HERE}/tiny.py:plain"
QUICK = ("--epochs", 3, "--limit", 96, "--batch-size", 32, "--freeze-after", 1)


def test_train_prints_one_document_and_leaves_a_folder_that_loads(run, tmp_path):
    code, out, err = run("train", NETWORK, "digits", "--epsilon", 1000, *QUICK, "--out", "o", "--json")
    document = json.loads(out)
    assert code == 0
    assert (len(document["lost"]), document["blocks"], document["share_lost"]) == (6, 6, 1.0)
    assert document["certificate"]["verdict"] == "identical"
    assert {"top1", "top1_interval", "n"} <= set(document["plain"]["quality"])
    for key, settled in (("original", "whole"), ("compressed", "plain")):  # as `shoal compress --json` has them
        assert document[key]["top1"] == document[settled]["quality"]["top1"]
        assert document[key]["params"] == document[settled]["cost"]["params"]
    assert "blocks alive" in err
    names = {one.name for one in (tmp_path / "o").iterdir()}
    assert {"model.safetensors", "plan.json", "record.json", "report.html", "metrics.jsonl", "run.json"} <= names
    assert not [name for name in names if name.endswith((".pt", ".pkl"))]
    model = shoal.load(tmp_path / "o", trust_code=True)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_the_same_command_resumes_and_a_finished_folder_is_refused(run, tmp_path, monkeypatch):
    from shoal.epsilon.trainer import EpsilonTrainer

    words = ("train", NETWORK, "digits", "--epsilon", 1000, *QUICK, "--out", "o")
    whole = EpsilonTrainer.begin_epoch

    def interrupted(self):
        if self.state.epoch == 2:
            raise KeyboardInterrupt
        return whole(self)

    monkeypatch.setattr(EpsilonTrainer, "begin_epoch", interrupted)
    code, _, err = run(*words)
    assert code == 130
    assert "resumes from the last checkpoint" in err
    monkeypatch.setattr(EpsilonTrainer, "begin_epoch", whole)
    code, out, _ = run(*words)
    assert code == 0
    assert "resuming the run in o" in out
    assert len((tmp_path / "o" / "metrics.jsonl").read_text().splitlines()) == 3
    code, _, err = run(*words)
    assert code == 2
    assert "finished run" in err


@pytest.mark.slow
def test_exit_code_1_where_no_block_was_lost(run):
    code, out, _ = run("train", "--epsilon", 1e-9, *QUICK, "--epochs", 1, "--out", "o")
    assert code == 1
    assert "larger epsilon" in out


def test_the_plain_network_is_one_flag_away(run):
    code, out, _ = run("train", NETWORK, "digits", "--epsilon", 0, "--no-side", *QUICK, "--out", "o", "--json")
    document = json.loads(out)
    assert (code, document["lost"], document["live"]) == (0, [], None)


@pytest.mark.slow
def test_beside_it_the_plain_networks_of_the_same_epochs(run):
    code, out, _ = run(
        "train",
        NETWORK,
        "digits",
        "--epsilon",
        1000,
        *QUICK,
        "--compare",
        "--also-epsilon",
        0.5,
        "--out",
        "o",
        "--json",
    )
    beside = json.loads(out)["beside"]
    assert code == 0
    assert set(beside) == {"plain", "plain-side", "large-epsilon", "epsilon-0.5"}
    assert beside["plain"]["comparison"]["top1_drop_interval"][0] <= beside["plain"]["comparison"]["top1_drop"]


def test_a_dry_run_writes_nothing(run, tmp_path):
    code, out, _ = run("train", "--dry-run")
    assert (code, list(tmp_path.iterdir())) == (0, [])
    assert "60 epochs with epsilon 2.2" in out


def test_with_a_teacher_a_trained_network_is_fine_tuned(run):
    code, out, _ = run(
        "train", "digits-resnet", "digits", "--teacher", "digits-resnet", "--epochs", 4, "--dry-run", "--json"
    )
    settings = json.loads(out)["settings"]
    assert (code, settings["epsilon"], settings["side"]) == (0, "auto", False)
    assert (settings["recipe"]["epochs"], settings["recipe"]["rate"]["settle"]) == (4, 2)


def test_a_share_of_blocks_goes_instead_of_epsilon(run):
    for words in (("--lose", 0.4), ("--epsilon", "auto", "--lose", 0.4)):
        assert "held so that 40 % of the blocks are lost" in run("train", "--dry-run", *words)[1]
    assert "held so that 30 % of the blocks are lost" in run("train", "--dry-run", "--epsilon", "auto")[1]
    for words, message in (
        (("--epsilon", 2, "--lose", 0.4), "one decides the other"),
        (("--lose", 30), "above 0 and below 1"),
        (("--epsilon", "car"), "a number or 'auto'"),
        (("--teacher-weights", "w.pt"), "without --teacher"),
    ):
        code, _, err = run("train", "--dry-run", *words)
        assert (code, message in err) == (2, True)


@pytest.mark.slow
def test_two_processes_train_together_and_the_first_one_speaks_and_saves(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["-m", "shoal", "train", NETWORK, "digits", "--epsilon", 1000, *QUICK, "--also-epsilon", 0.5]
    command = [sys.executable, *map(str, words), "--device", "cpu", "--json"]
    shared = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank in (0, 1):
        told = {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **told}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe, text=True))
    said = [one.communicate(timeout=250) for one in started]
    assert [one.returncode for one in started] == [0, 0], said
    document = json.loads(said[0][0])
    assert said[1][0] == "", "one document on stdout, from the first process"
    assert "blocks alive" in said[0][1]
    assert "blocks alive" not in said[1][1]
    assert len(document["lost"]) == 6
    assert set(document["beside"]) == {"epsilon-0.5"}
    (out,) = (tmp_path / "shoal-runs").iterdir()
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 3, "one line an epoch, from the first process"
    record = json.loads((out / "record.json").read_text())
    assert record["steps"] == 18, "192 samples, half of them in each process, in steps of 32 over both, three times"


def test_a_process_that_is_not_the_first_says_and_writes_nothing(run, monkeypatch, tmp_path):
    import shoal.cli.loading as loading
    from shoal.training.engine import Engine

    class Second(Engine):
        def __init__(self, *args, **kwargs):
            monkeypatch.delenv("WORLD_SIZE")  # the real one would wait for the others
            super().__init__(*args, **kwargs)
            monkeypatch.setenv("WORLD_SIZE", "2")
            self.is_main = False

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("shoal.epsilon.trainer.Engine", Second)
    monkeypatch.setattr(loading, "from_main", lambda function, device: tmp_path / "of-the-first")
    code, out, err = run("train", NETWORK, "digits", "--epsilon", 1000, *QUICK, "--out", "o", "--json")
    assert (code, out) == (0, "")
    assert "blocks alive" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--epsilon", "-1"), "expected a finite number from 0"),
        (("--epsilon", "nan"), "expected a finite number from 0"),
        (("--lr", "0"), "learning rate"),
        (("--recipe", "cifar11"), "cifar10"),
        (("cifar-preact-resnet:21", "digits"), "6n + 2"),
        (("cifar-preact-resnet:20",), "DATA is missing"),
        (("cifar-preact-resnet:20", "cifar10:nowhere"), "does not exist"),
        ((PLAIN, "digits"), "no block of this network can be gated"),
    ],
)
def test_what_is_refused_is_said_and_leaves_nothing(run, tmp_path, words, said):
    code, out, _ = run("train", *words, "--out", "o", "--json")
    assert code == 2
    assert said in json.dumps(json.loads(out)["error"])
    assert not (tmp_path / "o").exists()


def test_a_data_set_that_is_incomplete_is_said_with_what_belongs_there(run, tmp_path):
    (tmp_path / "c" / "cifar-10-batches-py").mkdir(parents=True)
    code, out, _ = run("train", "cifar-preact-resnet:20", "cifar10:c", "--out", "o", "--json")
    error = json.loads(out)["error"]
    assert (code, error["kind"]) == (2, "data")
    assert "not complete" in error["message"]
    assert "must hold the folder cifar-10-batches-py" in error["hint"]
    assert not (tmp_path / "o").exists()


def test_a_loss_that_is_nan_ends_in_exit_code_2_and_keeps_the_checkpoint(run, tmp_path, monkeypatch):
    from shoal.epsilon.trainer import EpsilonTrainer

    whole = EpsilonTrainer.begin_epoch

    def poisoned(self):
        if self.state.epoch == 2:
            with torch.no_grad():
                next(self.prunable.model.parameters()).fill_(float("nan"))
        return whole(self)

    monkeypatch.setattr(EpsilonTrainer, "begin_epoch", poisoned)
    code, out, _ = run("train", NETWORK, "digits", *QUICK, "--out", "o", "--json")
    error = json.loads(out)["error"]
    assert (code, error["kind"]) == (2, "non_finite")
    assert "the checkpoint of epoch 2 is kept" in error["message"]
    assert (tmp_path / "o" / "checkpoint.safetensors").is_file()


def test_a_checkpoint_of_another_network_is_refused(run, tmp_path):
    from shoal.store.checkpoint import load_checkpoint, save_checkpoint

    words = ("train", NETWORK, "digits", "--epsilon", 1000, *QUICK, "--out", "o", "--json")
    assert run(*words)[0] == 0
    for name in ("record.json", "model.safetensors", "plan.json"):
        (tmp_path / "o" / name).unlink()
    path = tmp_path / "o" / "checkpoint.safetensors"
    tensors, state = load_checkpoint(path)
    save_checkpoint(path, tensors, {**state, "network": {**state["network"], "of.another": "float32 [3]"}})
    code, out, _ = run(*words)
    assert (code, json.loads(out)["error"]["kind"]) == (2, "weights")
    assert "another network" in out


def test_the_network_gets_the_classes_of_the_data(tmp_path):
    data = load_data("digits")
    assert with_classes("cifar-preact-resnet:20", data) == "cifar-preact-resnet:20"
    object.__setattr__(data, "num_classes", 100)
    assert with_classes("cifar-preact-resnet:20", data) == "cifar-preact-resnet:20:100"
    assert with_classes("cifar-preact-resnet:20:7", data) == "cifar-preact-resnet:20:7"
    assert with_classes("timm:resnetv2_50", data) == "timm:resnetv2_50"
