import pytest

from shoal.cli.session import Session, rank
from shoal.errors import DataError


@pytest.mark.parametrize(
    ("environment", "number"),
    [
        ({}, 0),
        ({"RANK": "3"}, 0),
        ({"RANK": "3", "WORLD_SIZE": "1"}, 0),
        ({"RANK": "3", "WORLD_SIZE": "4"}, 3),
        ({"RANK": "", "WORLD_SIZE": "4"}, 0),
    ],
)
def test_only_several_processes_have_numbers(monkeypatch, environment, number):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert rank() == number


@pytest.mark.parametrize("as_json", [True, False])
def test_processes_behind_the_first_keep_quiet_but_for_their_errors(monkeypatch, capsys, as_json):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    session = Session(as_json=as_json)
    session.say("a line")
    session.print_json({"a": 1})
    with session.progress() as progress:
        progress("training", 1, 2)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "")
    with pytest.raises(SystemExit) as left:
        session.fail(DataError("no such file", "Look elsewhere."))
    said = capsys.readouterr()
    assert (left.value.code, said.out) == (2, "")
    assert "process 1: error: no such file" in said.err
    assert "Look elsewhere." in said.err


def test_the_first_process_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    session = Session(as_json=True)
    with pytest.raises(SystemExit):
        session.fail(DataError("no such file"))
    said = capsys.readouterr()
    assert '"no such file"' in said.out
    assert said.err == ""
