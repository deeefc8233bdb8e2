from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import language
from shoal.cli import loading
from shoal.cli.console import Session
from shoal.cli.loading import DataOptions, WorkerOptions, open_data, open_network, open_workers, sizes
from shoal.errors import ConsentError, DataError, UsageError
from shoal.plan import InputSpec
from shoal.store import OpenedFolder
from shoal.workers import LocalWorkers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("opening")
    (place / "corpus.txt").write_text(language.text(2000))
    language.llama().save_pretrained(place / "net")
    language.save_tokenizer(place / "tokenizer")
    return place


def test_text_is_read_as_the_network_reads_it(folder):
    network = open_network(Session(), f"hf:{folder / 'net'}", None)
    options = DataOptions(tokenizer=folder / "tokenizer", sequence_length=16)
    data = open_data(Session(), f"text:{folder / 'corpus.txt'}", options, network)
    assert data.describe()["shape"] == [16]
    with pytest.raises(DataError, match="there is no tokenizer in"):
        open_data(Session(), f"text:{folder / 'corpus.txt'}", DataOptions(), network)
    with pytest.raises(DataError, match="can only be read for a network"):
        open_data(Session(), f"text:{folder / 'corpus.txt'}", options)


@pytest.mark.parametrize("options", [DataOptions(sequence_length=16), DataOptions(tokenizer="x")])
def test_options_of_text_are_for_text(options):
    with pytest.raises(UsageError, match="--tokenizer and --sequence-length are for text"):
        open_data(Session(), "digits", options)


def test_a_data_set_of_the_hub_is_fetched_only_where_it_was_named(monkeypatch):
    monkeypatch.setattr("sys.argv", ["shoal", "compress", "--from", "run"])
    with pytest.raises(ConsentError, match="names the data 'hf-data:somebody/fish', which would be fetched"):
        open_data(Session(), "hf-data:somebody/fish", DataOptions())
    monkeypatch.setattr("sys.argv", ["shoal", "compress", "hf-data:somebody/fish"])
    with pytest.raises(DataError, match="text can only be read for a network"):
        open_data(Session(), "hf-data:somebody/fish", DataOptions())


def test_code_of_the_users_goes_to_other_machines_with_consent_alone(monkeypatch):
    pytest.importorskip("ray")
    module = ModuleType("factory")
    module.__file__ = "/home/somebody/factory.py"
    monkeypatch.setattr(loading, "user_modules", lambda: [module])
    monkeypatch.setattr("shoal.workers.on_ray._check_answers", lambda address: None)
    session, address = Session(), "10.0.0.1:6379"
    with pytest.raises(ConsentError, match=r"the nodes of '10.0.0.1:6379' lack the code of 'factory.py'"):
        open_workers(session, WorkerOptions(2, address), "cpu")
    assert open_workers(session, WorkerOptions(2, address, send_code=True), "cpu").modules == [module]
    assert open_workers(session, WorkerOptions(2), "cpu").modules == [module], "processes of this machine"


@pytest.mark.parametrize(
    ("options", "message"),
    [(WorkerOptions(2, send_code=True), "there are none"), (WorkerOptions(ray="10.0.0.1:6379"), "not by how many")],
)
def test_options_of_workers_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        open_workers(Session(), options, "cpu")


@pytest.mark.parametrize("count", [None, 1])
def test_without_several_workers_this_process_measures(count):
    assert isinstance(open_workers(Session(), WorkerOptions(count), "cpu"), LocalWorkers)


def test_it_is_said_which_weights_a_network_of_a_file_has(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("from torch import nn\n\ndef build():\n    return nn.Linear(2, 2)\n")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    monkeypatch.setattr("sys.argv", ["shoal", "trace", "net.py:build"])
    open_network(Session(), "net.py:build", None)
    assert "net.py:build for the network; no --weights, so it keeps those that the code" in capsys.readouterr().err
    open_network(Session(), "net.py:build", Path("w.pt"))
    assert "net.py:build for the network; weights from 'w.pt'" in capsys.readouterr().err


def test_a_shape_is_whole_numbers():
    assert sizes("3, 8,9") == [3, 8, 9]


@pytest.mark.parametrize("text", ["", "8x8", "3,8,", "inf,8", "nan", "1.5,8", "0,8", "-1,8", "99999999,99999999"])
def test_another_shape_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match=r"--shape is .*\n.*3,224,224"):
        sizes(text)


def test_a_folder_named_from_home_says_what_its_network_takes(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    plan = SimpleNamespace(inputs=[InputSpec(shape=[1, 8, 8], dtype="float32")])
    monkeypatch.setattr(loading, "read_folder_plan", lambda folder: plan if folder == tmp_path / "run" else None)
    network = OpenedFolder(torch.nn.Identity(), "~/run", runs_code=False, fetch=False)
    assert loading.example_for(network, None, None).args[0].shape[1:] == (1, 8, 8)
