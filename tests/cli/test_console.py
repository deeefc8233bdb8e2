import pytest

from shoal.cli.console import Session, processes, rank
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


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"])
@pytest.mark.parametrize(
    "words",
    [
        ["compress"],
        ["scan"],
        ["apply", "digits-resnet", "plan.json"],
        ["export", "out"],
        ["latency", "digits-resnet", "--out", "table.json"],
    ],
)
def test_where_each_process_would_write_the_same_several_are_refused(run, monkeypatch, tmp_path, variable, words):
    monkeypatch.setenv(variable, "2")
    monkeypatch.setenv("RANK", "1")
    code, _, err = run(*words)
    assert code == 2
    assert f"`shoal {words[0]}` runs in one process, a launcher started 2" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"])
@pytest.mark.parametrize("words", [["train"], ["distill", "digits-resnet", "digits", "--teacher", "digits-resnet"]])
def test_processes_that_torch_does_not_know_of_do_not_train(run, monkeypatch, tmp_path, variable, words):
    monkeypatch.setenv(variable, "2")
    code, _, err = run(*words)
    assert code == 2
    assert f"`shoal {words[0]}` runs in one process, a launcher started 2" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "two", "-3", "1e9", "9" * 500, "\u0663"])
def test_variables_that_are_no_numbers_mean_one_process(monkeypatch, text):
    monkeypatch.setenv("WORLD_SIZE", text)
    monkeypatch.setenv("RANK", text)
    assert (processes(), Session().rank) == (1, 0)
