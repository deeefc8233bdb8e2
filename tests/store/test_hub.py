"""A folder goes to the hub in one commit: what a user of the network needs, and nothing else."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from shoal.errors import ExportError, FolderError, PlanError, UsageError
from shoal.plan import NetworkSignature, Plan
from shoal.store.hub import push

pytest.importorskip("huggingface_hub")
KEPT = {
    "README.md",
    "model.safetensors",
    "extras.safetensors",
    "plan.json",
    "record.json",
    "report.html",
    "config.yaml",
}


class FakeHub:
    """Remembers what it is sent."""

    def __init__(self, refuse=None):
        self.refuse, self.repos, self.commits = refuse, [], []

    def create_repo(self, repo, *, private, exist_ok):
        if self.refuse:
            raise RuntimeError(self.refuse)
        self.repos.append((repo, private, exist_ok))

    def create_commit(self, repo, operations, commit_message):
        self.commits.append((repo, {one.path_in_repo: one.path_or_fileobj for one in operations}, commit_message))
        return SimpleNamespace(commit_url=f"hub/{repo}/1")


@pytest.fixture
def folder(tmp_path):
    for name in [*KEPT, "run.json", "progress.jsonl", ".shoal.lock", "notes.txt"]:
        (tmp_path / name).write_text("{}" if name.endswith(".json") else name)
    plan = Plan(inputs=[], network=NetworkSignature(state={}, chain=[]), actions=[])
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    for name in ("model.safetensors", "extras.safetensors"):
        save_file({"w": torch.ones(8)}, tmp_path / name)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "tables.jsonl").write_text("{}")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "model.pt2").symlink_to(tmp_path / "secret")
    return tmp_path


def with_hf(folder):
    (folder / "hf").mkdir()
    for name in ("config.json", "model.safetensors", "README.md"):
        (folder / "hf" / name).write_text(f"hf {name}")
    save_file({"w": torch.ones(8)}, folder / "hf" / "model.safetensors")
    return folder


def test_a_folder_is_sent_as_it_is_without_journals_and_links(folder):
    hub = FakeHub()
    pushed = push(folder, "me/net", api=hub)
    [(repo, files, message)] = hub.commits
    assert (repo, pushed.url) == ("me/net", "hub/me/net/1")
    assert set(files) == set(pushed.files) == KEPT
    assert files["model.safetensors"] == str(folder / "model.safetensors")
    assert hub.repos == [("me/net", True, True)]
    assert "Shoal" in message


def test_a_network_of_transformers_lies_at_the_root(folder):
    hub = FakeHub()
    push(with_hf(folder), "me/net", private=False, api=hub)
    [(_, files, _)] = hub.commits
    assert files["config.json"] == str(folder / "hf" / "config.json")
    assert files["README.md"] == str(folder / "hf" / "README.md")
    assert files["record.json"] == str(folder / "record.json")
    assert hub.repos == [("me/net", False, True)]
    push(folder, "me/net", form="shoal", api=hub)
    assert "config.json" not in hub.commits[1][1]


def test_without_sending_the_files_are_named(folder):
    pushed = push(folder, "me/net", send=False)
    assert (set(pushed.files), pushed.url) == (KEPT, "")


@pytest.mark.parametrize(
    "repo",
    ["net", "me/", "/net", "a/b/c", "", "me/a b", "../net", "me/-net", "me/a..b", "me/a--b", "me/net.git", "me/n\n"],
)
@pytest.mark.parametrize("send", [True, False])
def test_a_name_that_is_none_is_refused(repo, send, folder):
    hub = FakeHub()
    with pytest.raises(UsageError, match="no name of a repository"):
        push(folder, repo, send=send, api=hub)
    assert hub.repos == []


@pytest.mark.parametrize("form", ["hf", "nemotron-nas", "gguf"])
def test_a_form_that_is_not_there_is_refused(form, folder):
    with pytest.raises(UsageError, match=f"has no form '{form}'"):
        push(folder, "me/net", form=form, api=FakeHub())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"record.json": None}, "is unfinished"),
        ({"record.json": None, "run.json": None}, "is no output folder of Shoal: it holds no record.json"),
        ({"run.json": '{"command": "scan"}', "plan.json": None}, "is of `shoal scan`: it holds no plan.json"),
        ({"record.json": None, "run.json": '{"command": "apply"}'}, "is of `shoal apply`: it holds no record.json"),
        ({"model.safetensors": None, "run.json": None}, "it holds no model.safetensors"),
        ({"record.json": '{"cut'}, "record.json' is damaged"),
        ({"record.json": "null"}, "record.json' is damaged: it holds no record"),
    ],
)
def test_what_holds_no_finished_network_is_not_sent(changes, message, folder):
    for name, text in changes.items():
        (folder / name).unlink() if text is None else (folder / name).write_text(text)
    hub = FakeHub()
    with pytest.raises(FolderError, match=message):
        push(folder, "me/net", api=hub)
    assert hub.repos == []


@pytest.mark.parametrize("name", ["plan.json", "model.safetensors", "extras.safetensors", "hf/model.safetensors"])
@pytest.mark.parametrize("kept", [0, 0.5, 0.95])
@pytest.mark.parametrize("send", [True, False])
def test_what_was_cut_short_is_not_sent(name, kept, send, folder):
    whole = with_hf(folder) / name
    content = whole.read_bytes()
    whole.write_bytes(content[: int(kept * len(content))])
    hub = FakeHub()
    with pytest.raises((FolderError, PlanError)):
        push(folder, "me/net", form="hf" if "/" in name else "shoal", api=hub, send=send)
    assert hub.repos == []


def test_what_is_no_folder_is_not_sent(folder):
    with pytest.raises(FolderError, match="is a file, not an output folder"):
        push(folder / "record.json", "me/net", api=FakeHub())
    with pytest.raises(FolderError, match="there is no folder"):
        push(folder / "missing", "me/net", api=FakeHub())


def test_what_the_hub_says_is_told(folder):
    with pytest.raises(ExportError, match="401 Unauthorized") as caught:
        push(folder, "me/net", api=FakeHub("401 Unauthorized\nmore"))
    assert "hf auth login" in caught.value.hint


def test_the_command_names_the_files(folder, monkeypatch, capsys):
    import sys

    from shoal.cli import main

    monkeypatch.setattr(sys, "argv", ["shoal", "push", str(folder), "me/net", "--dry-run"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 0
    assert "Would send to me/net: README.md, " in capsys.readouterr().out
