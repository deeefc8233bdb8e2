"""A run by a configuration file is the run by the same options, and every run writes its own."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from shoal.cli.parameters import argument, command, command_line, nested, option

HERE = Path(__file__).parent.parent
NETWORK, DATA = f"{HERE}/tiny.py:network", f"{HERE}/tiny.py:data"


@dataclass(frozen=True)
class Group:
    size: int = option("--size", "A size.", 3, min=1)


@dataclass(frozen=True, kw_only=True)
class Request:
    model: str | None = argument("MODEL", "A model.", None)
    remove: int | None = option("--remove", "How many.", None)
    rate: float | None = option("--lr", "A rate.", None)
    mean: str | None = option("--mean", "Numbers.", None)
    names: list[str] | None = option("--output", "Repeat it.", None)
    side: bool = option("--side/--no-side", "A switch.", True)
    fold: bool = option("--fold", "A flag.", False)
    from_: Path | None = option("--from", "A folder.", None)
    group: Group = nested(Group)
    out: Path | None = option("--out", "A folder.", None)
    command: str = command_line()


def run(*words):
    """What the function gets: (result, session, request)."""
    app, seen = typer.Typer(), []

    @command(app)
    def go(session, request: Request) -> int:
        """Do it."""
        seen.append((session, request))
        return 0

    result = CliRunner().invoke(app, [str(word) for word in words], standalone_mode=False)
    return result, *(seen[0] if seen else (None, None))


@pytest.fixture(name="run_command")
def _run_command(request):
    """The command line as a user types it; the fixture `run` of this folder."""
    return request.getfixturevalue("run")


def asked(request):
    return {key: value for key, value in vars(request).items() if key != "command"}


TYPED = [
    "m",
    "--remove",
    2,
    "--lr",
    "1e-3",
    "--mean",
    "0.5,0.4",
    "--output",
    "a",
    "--output",
    "b",
    "--no-side",
    "--fold",
]
TYPED += ["--from", "d", "--size", 5]
WRITTEN = """
model: m
remove: 2
lr: 1e-3
mean: 0.5,0.4
output: [a, b]
side: false
fold: true
from: d
size: 5
"""


def test_a_file_says_what_the_options_say(tmp_path):
    (tmp_path / "run.yaml").write_text(WRITTEN)
    _, typed_session, typed = run(*TYPED)
    _, session, request = run("--config", tmp_path / "run.yaml")
    assert asked(request) == asked(typed)
    assert session.explicit == typed_session.explicit | {"config"}
    options = "--remove 2 --lr 0.001 --mean 0.5,0.4 --output a --output b --no-side --fold --from d --size 5"
    assert request.command == f"shoal go m {options}"


def test_what_is_written_says_the_same_again(tmp_path):
    _, session, request = run(*TYPED, "--out", "o", "--json")
    (tmp_path / "config.yaml").write_text(session.configuration)
    assert "out" not in yaml.safe_load(session.configuration)
    assert "# " not in session.configuration.partition("size")[0]
    _, again, repeated = run("--config", tmp_path / "config.yaml", "--out", "o")
    assert asked(repeated) == asked(request)
    assert again.configuration == session.configuration


def test_defaults_are_comments_and_stay_defaults(tmp_path):
    _, session, request = run("m")
    assert yaml.safe_load(session.configuration) == {"command": "go", "model": "m"}
    assert "# size: 3\n" in session.configuration
    assert "# side: true\n" in session.configuration
    assert "output" not in session.configuration
    (tmp_path / "config.yaml").write_text(session.configuration)
    _, again, repeated = run("--config", tmp_path / "config.yaml")
    assert (asked(repeated), again.explicit) == (asked(request), session.explicit | {"config"})


def test_what_is_typed_takes_precedence(tmp_path):
    (tmp_path / "run.yaml").write_text("model: m\nremove: 2\nside: false\noutput: [a]\n")
    _, _, request = run("--config", tmp_path / "run.yaml", "other", "--remove", 3, "--side", "--output", "c")
    assert (request.model, request.remove, request.side, request.names) == ("other", 3, True, ["c"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mean: [0.5, 0.4]\n", {"mean": "0.5,0.4"}),
        ("output: a\n", {"names": ["a"]}),
        ("remove: null\nmodel:\n", {"remove": None, "model": None}),
        ("command: go\n", {}),
        ("command:\n", {}),
        ("\ufeffremove: 1\r\n", {"remove": 1}),
        ("", {}),
        ("mean: 12:30\nmodel: 010\n", {"mean": "12:30", "model": "010"}),
        ('{"remove": 4, "from": "x"}', {"remove": 4, "from_": Path("x")}),
        ("model: no\nfold: yes\n", {"model": "no", "fold": True}),
        ("a_name: &x 1\n", None),
    ],
)
def test_values_are_read_as_they_would_be_typed(text, expected, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    result, _, request = run("--config", tmp_path / "run.yaml")
    if expected is None:
        assert "does not take" in str(result.exception)
    else:
        assert {key: getattr(request, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("remvoe: 2\n", ["'remvoe'", "`shoal go` does not take", "remove"]),
        ("remove: two\n", ["run.yaml", "remove", "two"]),
        ("remove: 1.5\n", ["run.yaml", "remove", "1.5"]),
        ("remove: true\n", ["run.yaml", "remove", "true"]),
        ("size: 0\n", ["run.yaml", "size", "0"]),
        ("fold: perhaps\n", ["run.yaml", "fold", "perhaps"]),
        ("remove: 1\nremove: 2\n", ["'remove' twice"]),
        ("side: true\nno-side: true\n", ["'no-side'", "does not take"]),
        ("command: scan\n", ["is for `shoal scan`"]),
        ("command: [go]\n", ["names several commands"]),
        ("model: [a, b]\n", ["model", "['a', 'b'], expected one value"]),
        ("remove: [1]\n", ["remove", "['1'], expected one value"]),
        ("from: [a]\n", ["from", "['a'], expected one value"]),
        ("side: [true]\n", ["side", "['true'], expected one value"]),
        ("trust-code: true\n", ["'trust-code', which no file may"]),
        ("ray: elsewhere:6379\n", ["'ray', which no file may"]),
        ("send_code: true\n", ["'send-code', which no file may"]),
        ("config: other.yaml\n", ["'config', which no file may"]),
        ("- remove\n", ["is not a list of options"]),
        ("just words\n", ["is not a list of options"]),
        ("remove: {a: 1}\n", ["line 1", "expected a value"]),
        ("? [a]\n: 1\n", ["expected a value"]),
        ("remove: [\n", ["line 2: no YAML: ", "in the config.yaml of an output folder"]),
        ("model: m\n\tremove: 1\n", ["line 2: no YAML: found character"]),
        ("model: 'm\n", ["line 2: no YAML: found unexpected end of stream"]),
        ("a: 1\n---\nb: 2\n", ["line 2: no YAML: but found another document"]),
        ("[" * 1000, ["cannot be read as a configuration"]),
        ("\0", ["cannot be read as a configuration"]),
        ("output: !!python/object/apply:os.system [exit]\n", None),
    ],
)
def test_what_a_file_says_wrongly_is_refused(text, words, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    result, _, request = run("--config", tmp_path / "run.yaml")
    if words is None:  # nothing is made of a tag: it is text like any other
        assert request.names == ["exit"]
        return
    assert request is None
    assert isinstance(result.exception, typer.BadParameter)
    assert all(word in str(result.exception) for word in words), str(result.exception)


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "run.yaml").write_text("model: m\nfrom: ~/earlier\nout: ~nobody-of-this-name/out\n")
    _, _, request = run("--config", "~/run.yaml")
    assert (request.from_, request.out) == (tmp_path / "earlier", Path("~nobody-of-this-name/out"))


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_no_such_file_is_wrong_use(name, tmp_path):
    result, _, request = run("--config", tmp_path / name)
    assert request is None
    assert "cannot be read as a configuration" in str(result.exception)


@pytest.mark.slow
def test_the_file_beside_a_result_repeats_it(run_command, tmp_path):
    code, out, _ = run_command("compress", NETWORK, DATA, "--remove", 2, "--batch-size", 32, "--out", "o", "--json")
    first = json.loads(out)
    words = ("compress", "--config", "o/config.yaml", "--out", "p", "--json", "--trust-code")
    code, out, _ = run_command(*words)
    again = json.loads(out)
    assert code == 0
    assert (again["removed"], again["goal"]) == (first["removed"], first["goal"])
    assert (tmp_path / "p" / "config.yaml").read_text() == (tmp_path / "o" / "config.yaml").read_text()
    first_weights, weights = (load_file(tmp_path / name / "model.safetensors") for name in "op")
    assert all(torch.equal(first_weights[name], weights[name]) for name in first_weights | weights)
    record = json.loads((tmp_path / "p" / "record.json").read_text())
    assert f"shoal compress {NETWORK} {DATA} --remove 2 --batch-size 32 --out p" in record["command"]


def test_a_scan_writes_and_repeats_its_configuration(run_command, tmp_path):
    flags = ("--no-layers", "--no-scores", "--limit", 20, "--batch-size", 8)
    code, out, _ = run_command("scan", NETWORK, DATA, *flags, "--out", "o", "--json")
    assert code == 0
    written = (tmp_path / "o" / "config.yaml").read_text()
    repeat = ("scan", "--config", "o/config.yaml", "--out", "p", "--json")
    code, out, _ = run_command(*repeat)
    assert (code, json.loads(out)["error"]["kind"]) == (2, "consent")
    assert "'o/config.yaml' names" in json.loads(out)["error"]["message"]
    assert not (tmp_path / "p").exists()
    code, out, _ = run_command(*repeat, "--trust-code")
    assert code == 0
    assert (tmp_path / "p" / "config.yaml").read_text() == written
    records = [json.loads((tmp_path / name / "record.json").read_text()) for name in "op"]
    assert [block["ablations"] for block in records[0]["blocks"]] == [
        block["ablations"] for block in records[1]["blocks"]
    ]


def test_a_wrong_file_is_a_document_too(run_command, tmp_path):
    (tmp_path / "run.yaml").write_text("seeds: 3\n")
    code, out, _ = run_command("compress", "--config", "run.yaml", "--json")
    assert (code, json.loads(out)["error"]["kind"]) == (2, "usage")
    assert "'seeds'" in json.loads(out)["error"]["message"]
