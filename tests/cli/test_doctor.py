"""`shoal doctor` and `shoal list` say what there is, and what is missing for what."""

import json
import re
import sys
import tomllib
from dataclasses import fields, is_dataclass
from importlib import metadata
from pathlib import Path

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from shoal.cli import options
from shoal.cli.doctor import LISTS, PURPOSES
from shoal.scanning.scores.block_scores import SCORES
from shoal.sources.models import MODEL_SOURCES
from shoal.tasks.choice import TASKS

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_every_extra_has_a_purpose():
    assert set(PURPOSES) == set(PROJECT["optional-dependencies"])


def test_doctor_reports_versions_devices_and_extras(run):
    code, out, _ = run("doctor", "--json")
    report = json.loads(out)
    assert code == 0
    assert report["shoal"] == metadata.version("shoal")
    assert [row["ok"] for row in report["devices"] if row["name"] == "cpu"] == [True]
    torch = next(row for row in report["required"] if row["name"] == "torch")
    assert (torch["version"], torch["ok"]) == (metadata.version("torch"), True)
    assert {row["name"] for row in report["extras"]} == set(PURPOSES)
    code, out, _ = run("doctor")
    assert code == 0
    assert all(word in out for word in ("devices", "required", "optional", "torch", "shoal export --onnx"))


def test_a_torch_that_does_not_load_is_a_line_of_the_report(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    code, out, err = run("doctor")
    assert (code, err) == (2, "")
    assert "--  cpu             torch cannot be imported: " in out
    assert "shoal export --onnx" in out


def fake(monkeypatch, versions, requires):
    def version(name):
        if versions.get(name) is None and name != "shoal":
            raise metadata.PackageNotFoundError(name)
        return versions.get(name, "0.1.0")

    monkeypatch.setattr("shoal.cli.doctor.metadata.version", version)
    monkeypatch.setattr("shoal.cli.doctor.metadata.requires", lambda name: requires)


def test_what_is_missing_or_too_old_is_named_with_the_way_out(run, monkeypatch):
    requires = [
        "torch>=2.8",
        'onnx>=1.17; extra == "onnx"',
        'gguf>=0.17; extra == "gguf"',
        'shoal[onnx,gguf]; extra == "all"',
    ]
    fake(monkeypatch, {"torch": "2.9", "onnx": "1.2"}, requires)
    code, out, _ = run("doctor", "--json")
    extras = {row["name"]: row for row in json.loads(out)["extras"]}
    assert code == 0
    assert extras["onnx"]["missing"] == ["onnx>=1.17"]
    assert extras["gguf"]["missing"] == ["gguf>=0.17"]
    assert extras["vision"]["ok"]
    assert sorted(extras["all"]["missing"]) == ["gguf>=0.17", "onnx>=1.17"]
    code, out, _ = run("doctor")
    assert "pip install 'shoal[gguf]'" in out


@pytest.mark.parametrize("version", ["2.7", None])
def test_without_what_is_required_the_exit_code_says_so(version, run, monkeypatch):
    fake(monkeypatch, {"torch": version}, ["torch>=2.8"])
    code, out, _ = run("doctor")
    assert code == 2
    assert ">=2.8 is needed" in out


@pytest.mark.parametrize("what", LISTS)
def test_lists_are_tables_and_documents(what, run):
    code, out, _ = run("list", what, "--json")
    rows = json.loads(out)[what]
    assert code == 0
    assert rows
    assert all(row.keys() == rows[0].keys() for row in rows)
    code, out, _ = run("list", what)
    assert code == 0
    assert rows[0]["name"] in out


def test_lists_name_everything_that_tables_hold(run):
    _, out, _ = run("list", "scores", "--json")
    assert [row["name"] for row in json.loads(out)["scores"]] == list(SCORES)
    _, out, _ = run("list", "models", "--json")
    names = [row["name"].partition(":")[0] for row in json.loads(out)["models"]]
    assert set(MODEL_SOURCES.builtin) <= set(names)
    _, out, _ = run("list", "replacements", "--json")
    assert {"conv3", "folded", "block", "narrow1/4"} <= {row["name"] for row in json.loads(out)["replacements"]}


def test_a_search_goes_into_the_libraries(run):
    pytest.importorskip("timm")
    _, out, _ = run("list", "models", "resnet18", "--json")
    names = {row["name"] for row in json.loads(out)["models"]}
    assert {"torchvision:resnet18", "timm:resnet18"} <= names
    assert all("resnet18" in name for name in names)
    _, out, _ = run("list", "models", "nothing-of-this-name")
    assert out == "no models match 'nothing-of-this-name'\n"


def test_a_library_that_does_not_load_is_said_not_to_be_searched(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    code, out, _ = run("list", "models", "resnet18")
    assert code == 0
    assert "torchvision:resnet18" in out
    assert out.splitlines()[-1] == "not searched: timm; shoal doctor"
    assert "not searched" not in run("list", "models")[1]


def test_an_unknown_list_is_refused_with_those_there_are(run):
    code, out, _ = run("list", "model", "--json")
    assert (code, json.loads(out)["error"]["kind"]) == (2, "usage")
    assert "'models'" in json.loads(out)["error"]["hint"]
    _, out, _ = run("list", "zzzz", "--json")
    assert "replacements" in out


COMPLETIONS = {  # as the shell functions of typer ask
    "bash": lambda line: {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)},
    "zsh": lambda line: {"_TYPER_COMPLETE_ARGS": line},
    "fish": lambda line: {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


@pytest.mark.parametrize("shell", COMPLETIONS)
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("shoal li", ["list"]),
        ("shoal list m", ["models", "metrics"]),
        ("shoal compress --ma", ["--max-drop", "--macs"]),
        ("shoal compress --grain u", ["unit"]),
        ("shoal compress --track tensorboard,t", ["tensorboard,tensorboard", "tensorboard,trackio"]),
        ("shoal scan --config missing.yaml --spl", ["--split"]),
    ],
)
def test_every_shell_completes_commands_options_and_values(shell, line, expected, run, monkeypatch):
    monkeypatch.setenv("_SHOAL_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("COLUMNS", "80")
    for name, value in COMPLETIONS[shell](line).items():
        monkeypatch.setenv(name, value)
    code, out, err = run()
    assert (code, err) == (0, "")
    if shell == "zsh":
        found = re.findall(r'^(?:_arguments [^"]*)?"([^"]+)"', out, re.MULTILINE)
    else:
        found = [candidate.split("\t")[0] for candidate in out.splitlines()]
    assert found == expected


def test_what_is_completed_is_what_there_is():
    values = {field.name: field.metadata["typer"].autocompletion("") for field in completed_fields()}
    assert set(values["what"]) == set(LISTS)
    assert set(values["task"]) == set(TASKS)
    assert set(values["track"]) <= {*LOGGER_TYPE_TO_CLASS, "trackio"}  # which accelerate 1.0 does not know yet


def completed_fields():
    """The fields of all requests that complete to values."""
    kinds = [kind for kind in vars(options).values() if is_dataclass(kind)]
    return [
        field for kind in kinds for field in fields(kind) if getattr(field.metadata.get("typer"), "autocompletion", 0)
    ]


def test_shell_completion_is_offered(run):
    _, out, _ = run("--help")
    assert "--install-completion" in out
