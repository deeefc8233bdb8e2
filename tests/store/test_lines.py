import errno
import os

import pytest

from shoal.errors import FolderError
from shoal.store.lines import Lines


def test_lines_come_back_in_order(tmp_path):
    lines = Lines(tmp_path / "lines.jsonl")
    assert lines.read() == []
    assert not lines.path.exists()
    for number in range(3):
        lines.append({"n": number, "text": "a\nb\u2028c"})
    assert [line["n"] for line in lines.read()] == [0, 1, 2]
    assert lines.read()[0]["text"] == "a\nb\u2028c"
    assert Lines(lines.path).read() == lines.read()


@pytest.mark.parametrize("torn", ['{"n": 2', "\x00\x00", "{", '"'])
def test_a_torn_line_is_dropped_from_the_file(tmp_path, torn):
    lines = Lines(tmp_path / "lines.jsonl")
    lines.append({"n": 1})
    with lines.path.open("a") as file:
        file.write(torn)
    assert lines.read() == [{"n": 1}]
    assert lines.path.read_text() == '{"n": 1}\n'
    lines.append({"n": 2})
    assert lines.read() == [{"n": 1}, {"n": 2}]


def test_what_stands_behind_a_torn_line_goes_with_it(tmp_path):
    lines = Lines(tmp_path / "lines.jsonl")
    lines.path.write_text('{"n": 1}\n{"n": \n{"n": 3}\n')
    assert lines.read() == [{"n": 1}]
    assert lines.path.read_text() == '{"n": 1}\n'


def test_a_whole_line_gets_its_newline(tmp_path):
    lines = Lines(tmp_path / "lines.jsonl")
    lines.path.write_text('{"n": 1}\n{"n": 2}')
    lines.read()
    lines.append({"n": 3})
    assert [line["n"] for line in lines.read()] == [1, 2, 3]


def test_reading_a_sound_file_does_not_write_it(tmp_path):
    lines = Lines(tmp_path / "lines.jsonl")
    lines.append({"n": 1})
    before = lines.path.stat().st_ino
    lines.read()
    assert lines.path.stat().st_ino == before


def test_each_line_is_on_the_disk_before_the_next_thing_happens(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    lines = Lines(tmp_path / "lines.jsonl")
    lines.append({"n": 1})
    lines.append({"n": 2})
    assert len(synced) == 2


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    lines = Lines(tmp_path / "lines.jsonl")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FolderError, match=r"cannot write '.*lines.jsonl': No space left on device\n.*then resume"):
        lines.append({"n": 1})
