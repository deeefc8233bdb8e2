import errno
import os

import pytest

from shoal.errors import FolderError
from shoal.files.jsonl import JsonlFile

ONE = '{"n": 1, "crc32": "d21474d0"}\n'


def test_lines_come_back_in_order(tmp_path):
    lines = JsonlFile(tmp_path / "lines.jsonl")
    assert lines.read() == []
    assert not lines.path.exists()
    for number in range(3):
        lines.append({"n": number, "text": "a\nb\u2028c"})
    assert [line["n"] for line in lines.read()] == [0, 1, 2]
    assert lines.read()[0]["text"] == "a\nb\u2028c"
    assert JsonlFile(lines.path).read() == lines.read()


@pytest.mark.parametrize("torn", ['{"n": 2', "\x00\x00", "{", '"'])
def test_a_torn_line_is_dropped_from_the_file(tmp_path, torn):
    lines = JsonlFile(tmp_path / "lines.jsonl")
    lines.append({"n": 1})
    with lines.path.open("a") as file:
        file.write(torn)
    assert lines.read() == [{"n": 1}]
    assert lines.path.read_text() == ONE
    lines.append({"n": 2})
    assert lines.read() == [{"n": 1}, {"n": 2}]


def test_what_stands_behind_a_torn_line_goes_with_it(tmp_path):
    lines = JsonlFile(tmp_path / "lines.jsonl")
    lines.path.write_text(ONE + '{"n": \n' + ONE)
    assert lines.read() == [{"n": 1}]
    assert lines.path.read_text() == ONE


def test_a_whole_line_gets_its_newline(tmp_path):
    lines = JsonlFile(tmp_path / "lines.jsonl")
    lines.append({"n": 1})
    lines.append({"n": 2})
    lines.path.write_bytes(lines.path.read_bytes()[:-1])
    lines.read()
    lines.append({"n": 3})
    assert [line["n"] for line in lines.read()] == [1, 2, 3]


def test_reading_a_sound_file_does_not_write_it(tmp_path):
    lines = JsonlFile(tmp_path / "lines.jsonl")
    lines.append({"n": 1})
    before = lines.path.stat().st_ino
    lines.read()
    assert lines.path.stat().st_ino == before


def test_each_line_is_on_the_disk_before_the_next_thing_happens(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    lines = JsonlFile(tmp_path / "lines.jsonl")
    lines.append({"n": 1})
    lines.append({"n": 2})
    assert len(synced) == 2


def full(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    lines = JsonlFile(tmp_path / "lines.jsonl")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FolderError, match=r"cannot write '.*lines.jsonl': No space left on device\n.*then resume"):
        lines.append({"n": 1})


def test_every_flipped_bit_is_noticed(tmp_path):
    lines = JsonlFile(tmp_path / "lines.jsonl")
    for number in range(2):
        lines.append({"n": number, "ms": 0.25})
    sound = lines.path.read_bytes()
    first = sound.index(b"\n") + 1
    for place in range(0, 8 * len(sound), 3):
        if place // 8 == len(sound) - 1:
            continue  # the last newline: the line before it is whole without
        altered = bytearray(sound)
        altered[place // 8] ^= 1 << place % 8
        lines.path.write_bytes(altered)
        expected = [] if place // 8 < first else [{"n": 0, "ms": 0.25}]
        assert lines.read() == expected, place


@pytest.mark.parametrize(
    "line", ["[1]", "3", '{"a": 1, "a": 2}', "[" * 100_000, '{"n": 1' + "0" * 400, '{"n": 1, "crc32": "00000000"}']
)
def test_a_line_that_is_no_object_or_has_another_checksum_is_dropped(tmp_path, line):
    lines = JsonlFile(tmp_path / "lines.jsonl")
    lines.path.write_text(line + "\n")
    assert lines.read() == []


def test_lines_of_version_0_1_0_had_no_checksum(tmp_path):
    lines = JsonlFile(tmp_path / "lines.jsonl")
    old = '{"n": 1}\n{"n": 2, "key": "0123456789abcdef"}\n'
    lines.path.write_text(old)
    assert [line["n"] for line in lines.read()] == [1, 2]
    assert lines.path.read_text() == old, "reading changes nothing"
    lines.append({"n": 3})
    assert [line["n"] for line in lines.read()] == [1, 2, 3]
    with lines.path.open("a") as file:
        file.write('{"n": 4}\n')
    assert [line["n"] for line in lines.read()] == [1, 2, 3], "after a checksum every line has one"
    lines.path.write_text(old + '{"n": 3')
    assert [line["n"] for line in lines.read()] == [1, 2]
    assert lines.path.read_text() == old


def test_numbers_that_are_none_and_an_empty_line_come_back(tmp_path):
    lines = JsonlFile(tmp_path / "lines.jsonl")
    lines.append({"kl": float("inf")})
    lines.append({})
    assert lines.read() == [{"kl": float("inf")}, {}]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, make):
    make(tmp_path / "lines.jsonl")
    with pytest.raises(FolderError, match=r"cannot read '.*lines.jsonl': it is (a folder|not a regular file)"):
        JsonlFile(tmp_path / "lines.jsonl").read()
