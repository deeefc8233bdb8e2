"""Output folders that version 0.1.0 wrote are read, resumed and solved again, without digests and checksums in them."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import shoal
from shoal.cli import main
from shoal.files.jsonl import JsonlFile
from shoal.plan import read_plan
from shoal.plan.plan import differences
from shoal.record import Network
from shoal.report import render, render_training
from shoal.sources import load_data, load_function, load_model
from shoal.store import read_record
from shoal.store.checkpoint import load_checkpoint
from shoal.surgery import signature_of
from shoal.training_record import TrainRecord

FOLDERS = Path(__file__).parent.parent / "fixtures" / "folders-0.1.0"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A copy of the folders with the file of their network, in the working directory; one thread as in their tables."""
    shutil.copytree(FOLDERS, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path / "home"
    torch.set_num_threads(threads)


@pytest.fixture
def run(home, monkeypatch, capsys):
    def command(*words):
        monkeypatch.setattr(sys, "argv", ["shoal", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        return end.value.code, captured.out, captured.err

    return command


@pytest.fixture
def build(home):
    return load_function(str(home / "tiny.py:build"))


def compressed(folder) -> Network:
    if folder.name == "trained":
        return TrainRecord.model_validate_json((folder / "record.json").read_text()).settled.plain
    return read_record(folder).compressed


@pytest.mark.parametrize("name", ["removed", "planned", "trained"])
def test_a_folder_loads_and_answers_as_its_record_says(home, build, name):
    network, expected = shoal.load(home / name, model=build), compressed(home / name)
    images, labels = zip(*load_data("digits").test(), strict=True)
    images, labels = torch.cat(images), torch.cat(labels)
    with torch.no_grad():
        logits = network(images)
    assert expected.quality.n == len(labels)
    assert float((logits.argmax(1) == labels).double().mean()) == pytest.approx(expected.quality.top1)
    assert float(torch.nn.functional.cross_entropy(logits, labels)) == pytest.approx(expected.quality.loss, rel=1e-5)
    assert sum(weight.numel() for weight in network.parameters()) == expected.cost.params


@pytest.mark.parametrize("name", ["removed", "planned", "trained"])
def test_a_record_is_rendered(home, name):
    record = home / name / "record.json"
    if name == "trained":
        page = render_training(TrainRecord.model_validate_json(record.read_text()))
    else:
        page = render(read_record(home / name))
    assert "<html" in page
    assert "tiny.py:build" in page


@pytest.mark.parametrize("name", ["removed", "planned", "trained"])
@pytest.mark.parametrize("version", [1, 2])
def test_plans_of_both_versions_are_read(home, name, version):
    path = home / name / "plan.json"
    document = json.loads(path.read_text())
    assert document["schema_version"] == 2
    if version == 1:
        if name == "planned":
            pytest.skip("version 1 had no replacements")
        document["schema_version"] = 1
        for action in document["actions"]:
            del action["unit"], action["norms"]
        path.write_text(json.dumps(document))
    plan = read_plan(path)
    assert len(plan.network.chain) == 4
    assert len(plan.removals) == (2 if name == "removed" else 0)


def test_checkpoints_of_both_kinds_are_read(home):
    for path in ("planned/cut.safetensors", "planned/recovery.safetensors", "trained/checkpoint.safetensors"):
        tensors, state = load_checkpoint(home / path)
        assert tensors
        assert state["version"] == 1


def test_an_unfinished_training_resumes(home, run, monkeypatch):
    path = home / "train-unfinished" / "metrics.jsonl"
    before = path.read_text().splitlines()
    append, calls = JsonlFile.append, []

    def interrupted(self, line):
        append(self, line)
        calls.append(line)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(JsonlFile, "append", interrupted)
    command = ["train", "tiny.py:build", "digits", "--epsilon", "0.4", "--epochs", "400", "--out", "train-unfinished"]
    code, out, err = run(*command)
    assert code == 130, err
    assert "resuming the run in train-unfinished" in out
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [*range(1, len(rows) + 1)]
    assert len(rows) == len(calls) + calls[0]["epoch"] - 1
    assert 0 < calls[0]["epoch"] - 1 <= len(before)
    for row, line in zip(rows, before[: calls[0]["epoch"] - 1], strict=False):
        del row["crc32"]
        assert row == json.loads(line)


def test_another_command_does_not_resume_it(home, run):
    code, _, err = run("train", "tiny.py:build", "digits", "--epsilon", "0.4", "--out", "train-unfinished")
    assert code == 2
    assert "settings.recipe.epochs was 400, now 60" in err


def test_a_dry_run_from_old_tables_measures_nothing(home, run):
    tables = home / "planned" / "tables" / "tables.jsonl"
    before = tables.read_bytes()
    code, out, err = run("compress", "--from", "planned", "--macs", "0.8", "--dry-run", "--trust-code", "--json")
    assert code == 0, err
    assert json.loads(out)["goal"] == {"macs": "0.8"}
    assert tables.read_bytes() == before


@pytest.mark.slow
def test_old_tables_are_solved_for_another_goal(home, run):
    tables = home / "planned" / "tables" / "tables.jsonl"
    before = tables.read_bytes()
    code, out, err = run("compress", "--from", "planned", "--macs", "0.8", "--trust-code", "--out", "again", "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert summary["reached"]
    assert summary["compressed"]["macs"] <= 0.8 * summary["original"]["macs"]
    assert tables.read_bytes().startswith(before)
    assert b'"kind": "fitted"' not in tables.read_bytes()[len(before) :], "every replacement comes from the tables"
    assert shoal.load("again", trust_code=True) is not None


@pytest.mark.parametrize(("key", "value"), [("fit_on", "0" * 16), ("network", "0" * 16), ("damage", "mine.damage")])
def test_old_tables_of_something_else_are_refused(home, run, key, value):
    path = home / "planned" / "tables" / "tables.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    code, _, err = run("compress", "--from", "planned", "--macs", "0.8", "--dry-run", "--trust-code")
    assert code == 2
    assert f"were made for something else: {key} was '{value}', now" in err


def test_a_plan_of_the_embedded_network_knows_it_under_its_former_class_names():
    network = shoal.trace(load_model("digits-resnet").model, load_data("digits").example())
    signature = signature_of(load_model("digits-resnet").model, network)
    former = [line.replace(":DigitsBlock:", ":Block:") for line in signature.chain]
    assert former != signature.chain
    assert differences(signature.model_copy(update={"chain": former}), signature) == []
    assert differences(signature.model_copy(update={"chain": former[1:]}), signature) != []
    assert differences(signature, signature.model_copy(update={"chain": former})) != []
