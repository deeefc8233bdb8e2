"""Folders and plans of strangers: what they name is neither run nor fetched, unless the user says so."""

import json

import pytest
import torch

import shoal
from shoal.errors import ConsentError

EVIL = """
from pathlib import Path

import torch
from torch import nn

Path(__file__).with_name("ran").touch()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x):
        return x + self.conv(torch.relu(x))


def build():
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block(), nn.Flatten(), nn.Linear(64, 10))


def data():
    x = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(40) % 10
    return [list(zip(x, y))] * 2


def ms(module, shape):
    return 1.0
"""
QUICK = ("--images", 32, "--batch-size", 16, "--recover", "none")


@pytest.fixture
def folder(run, tmp_path):
    """An output folder whose files were made by somebody else."""
    (tmp_path / "evil.py").write_text(EVIL)
    words = ("compress", "evil.py:build", "evil.py:data", "--macs", "0.9", "--latency-from", "evil.py:ms", *QUICK)
    code, _, err = run(*words, "--out", "theirs")
    assert code in (0, 1), err
    (tmp_path / "ran").unlink()
    return tmp_path / "theirs"


OPENING = [
    ["scan", "theirs", "digits", "--limit", "20"],
    ["trace", "theirs"],
    ["export", "theirs"],
    ["export", "theirs", "--gguf"],
    ["eval", "theirs", "--tasks", "fish"],
    ["bench", "theirs", "--seconds", "0.1"],
    ["certify", "theirs", "digits-resnet", "digits"],
    ["certify", "digits-resnet", "theirs", "digits"],
    ["compress", "theirs", "digits", "--remove", "1"],
    ["compress", "--from", "theirs", "--pick", "1"],
    ["compress", "--from", "theirs", "--pick", "1", "--dry-run"],
    ["distill", "theirs", "digits", "--teacher", "digits-resnet", "--budget", "1"],
    ["distill", "digits-resnet", "digits", "--teacher", "theirs", "--budget", "1"],
    ["train", "theirs", "digits", "--epochs", "1"],
    ["latency", "theirs", "--out", "table.json"],
    ["apply", "theirs", "theirs/plan.json"],
    ["certify", "theirs", "evil.py:other", "digits"],
]


def test_no_command_runs_what_a_folder_names(run, tmp_path, folder):
    for words in OPENING:
        code, _, err = run(*words)
        assert code == 2, (words, err)
        assert "would run that file" in err, (words, err)
        assert "--trust-code" in err
        assert not (tmp_path / "ran").exists(), words
    with pytest.raises(ConsentError, match=r"trust_code=True"):
        shoal.load(folder)
    assert not (tmp_path / "ran").exists()
    assert {one.name for one in tmp_path.iterdir()} == {"evil.py", "theirs"}


def test_consent_is_the_option_or_the_very_words(run, tmp_path, folder):
    code, _, err = run("trace", "theirs", "--trust-code")
    assert code == 0, err
    code, _, err = run("certify", "./evil.py:build", "theirs", "evil.py:data")
    assert code in (0, 1), err
    code, _, err = run("compress", "--from", "theirs", "--pick", "1", "--trust-code", "--out", "again")
    assert code in (0, 1), err
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(shoal.load(folder, trust_code=True)(x), shoal.load(tmp_path / "theirs", trust_code=True)(x))


@pytest.mark.parametrize("key", ["data", "unlabelled", "latency_from", "task"])
def test_each_thing_that_an_earlier_run_names_is_asked_about(run, tmp_path, folder, key):
    claim = json.loads((folder / "run.json").read_text())
    claim["arguments"] |= {"recover": "1", "latency_from": None, key: "worse.py:data"}
    (folder / "run.json").write_text(json.dumps(claim))
    (tmp_path / "worse.py").write_text(EVIL.replace('"ran"', '"worse"'))
    typed = ["evil.py:build"] if key == "data" else ["evil.py:build", "evil.py:data"]
    code, _, err = run("compress", *typed, "--from", "theirs", "--pick", "1")
    assert code == 2
    assert "a folder names 'worse.py:data'" in err
    assert not (tmp_path / "worse").exists()


def test_a_plan_that_names_a_network_of_the_hub_fetches_nothing(folder):
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {"model": "hf:somebody/no-such-network"}))
    with pytest.raises(ConsentError, match="would have to be downloaded"):
        shoal.load(folder)
