import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from shoal.errors import FolderError
from shoal.files.jsonl import JsonlFile
from shoal.files.tensors import write_tensors
from shoal.files.writing import PARTIAL, check_replaceable, check_writable, remove_partial, write_atomically, write_text


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    write_text(path, "old")
    with pytest.raises(FolderError, match=r"cannot write '.*plan.json': No space left on device\n.*Free some space"):
        write_atomically(path, full)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FolderError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["plan.json"]


def test_a_writer_that_raises_keeps_the_old_file(tmp_path):
    path = tmp_path / "plan.json"
    write_text(path, "old")

    def writer(temporary):
        temporary.write_text("new, but hal")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomically(path, writer)
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["plan.json"]


def test_nothing_stands_at_the_path_until_it_is_whole(tmp_path):
    path = tmp_path / "plan.json"

    def writer(temporary):
        temporary.write_text("half")
        assert not path.exists()
        temporary.write_text("whole")

    write_atomically(path, writer)
    assert path.read_text() == "whole"


def test_a_new_file_takes_the_place_of_the_old_one(tmp_path):
    path, link = tmp_path / "plan.json", tmp_path / "link"
    write_text(path, "old")
    link.hardlink_to(path)
    write_text(path, "new")
    assert (path.read_text(), link.read_text()) == ("new", "old")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FolderError, match=r"cannot write '.*plan.json': there is no folder '.*missing'"):
        write_text(tmp_path / "missing" / "plan.json", "text")


@pytest.mark.parametrize("name", ["folder", "pipe", "link to a pipe", ""])
def test_what_is_no_file_is_not_replaced(name, tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")  # as a device: other programs use it
    (tmp_path / "link to a pipe").symlink_to(tmp_path / "pipe")
    before = {path: path.lstat().st_mode for path in tmp_path.iterdir()}
    with pytest.raises(FolderError, match=r"it is (a folder|no regular file)"):
        write_text(tmp_path / name if name else Path(), "text")
    assert {path: path.lstat().st_mode for path in tmp_path.iterdir()} == before


def test_the_partial_file_is_hidden_in_a_folder_beside_its_place(tmp_path):
    path, seen = tmp_path / "plan.json", []

    def writer(temporary):
        seen.append(temporary)
        temporary.write_text("whole", encoding="utf-8")

    write_atomically(path, writer)
    assert seen[0].parent.parent == tmp_path
    assert seen[0].parent.name.startswith(".plan.json.")
    assert seen[0].parent.name.endswith(PARTIAL)
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes there")
def test_what_a_writer_leaves_beside_its_file_when_it_is_killed_is_removed_later(tmp_path):
    (tmp_path / "mine.partial").touch()
    code = (
        "import resource, signal, sys, torch; from pathlib import Path; from shoal.files.tensors import write_tensors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))\n"
        "write_tensors(Path(sys.argv[1]), {'w': torch.ones(10_000)}, {})\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.safetensors")]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGXFSZ
    assert len(list(tmp_path.iterdir())) == 2, "killed in the middle of the write"
    remove_partial(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.partial"]


def test_text_is_utf_8(tmp_path):
    write_text(tmp_path / "text", "Übergröße\n")
    assert (tmp_path / "text").read_bytes() == "Übergröße\n".encode()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o027, 0o640)])
@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "text"),
        lambda path: write_tensors(path, {"a": torch.ones(2)}, {}),
        lambda path: JsonlFile(path).append({"n": 1}),
    ],
)
def test_permissions_are_those_of_the_umask(tmp_path, umask, mode, write):
    before = os.umask(umask)
    try:
        write(tmp_path / "file")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_a_folder_removed_meanwhile_does_not_hide_why(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()

    def writer(temporary):
        shutil.rmtree(folder)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomically(folder / "plan.json", writer)


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    check_replaceable(tmp_path / "table.json")
    check_writable(tmp_path / "to be made")
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    for check in (lambda: check_replaceable(tmp_path / "table.json"), lambda: check_writable(tmp_path)):
        with pytest.raises(FolderError, match=f"the folder '{tmp_path}' is not writable"):
            check()


def test_room_is_asked_for_where_room_is_missing(tmp_path):
    def read_only(temporary):
        raise OSError(errno.EROFS, "Read-only file system")

    with pytest.raises(FolderError, match="Read-only file system\n  Choose another --out"):
        write_atomically(tmp_path / "a", read_only)
