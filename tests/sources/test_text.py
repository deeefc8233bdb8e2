import json

import pytest

from shoal.errors import DataError
from shoal.sources.text import documents


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def test_blank_lines_part_a_file(tmp_path):
    (tmp_path / "a.txt").write_text("\n\none\nstill one\n\n \n\ntwo\n\nthree\n")
    found = documents(tmp_path / "a.txt")
    assert (found.train, found.test) == (["one\nstill one", "two", "three"], None)


def test_lines_of_json(tmp_path):
    (tmp_path / "a.jsonl").write_text(lines("one\n\nstill one", "two", " ", "three") + "\n")
    assert documents(tmp_path / "a.jsonl").train == ["one\n\nstill one", "two", "three"]


def test_each_file_of_a_folder_is_a_document(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.md"):
        (tmp_path / name).write_text(f"{name}\n\nand on")
    (tmp_path / "no.csv").write_text("not text")
    assert documents(tmp_path).train == ["a.txt\n\nand on", "b.txt\n\nand on", "deep/c.md\n\nand on"]


def test_few_files_are_parted_by_blank_lines(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    (tmp_path / "b.txt").write_text("three\n\nfour")
    assert documents(tmp_path).train == ["one", "two", "three", "four"]


@pytest.mark.parametrize(("train", "test"), [("train.txt", "test.jsonl"), ("train/x.txt", "val/y.jsonl")])
def test_a_folder_may_set_test_apart(tmp_path, train, test):
    for name in (train, test):
        (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / train).write_text("one\n\ntwo")
    (tmp_path / test).write_text(lines("three"))
    found = documents(tmp_path)
    assert (found.train, found.test) == (["one", "two"], ["three"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"only one\nof many lines", r"holds 1 document, and it takes 3 .*\n.*blank lines"),
        ("a.txt", b"one\n\ntwo", "holds 2 documents"),
        ("a.txt", b" \n\n ", "is empty"),
        ("a.txt", b"\xff\xfe\x00", r"'a\.txt' is not UTF-8"),
        ("a.pdf", b"%PDF", r"'a\.pdf' is not a kind of text that Shoal reads\n.*\.jsonl"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', r"'a\.jsonl', line 2 is no JSON"),
        ("a.jsonl", b'{"tekst": "x"}', r"line 1 has no text under \"text\"\n.*Did you mean 'tekst'"),
        ("a.jsonl", b"[1]", "line 1 has no text"),
    ],
)
def test_files_that_do_not_fit(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        documents(tmp_path / name)


def test_nothing_there(tmp_path):
    with pytest.raises(DataError, match="no file or folder"):
        documents(tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"there is no text in .*\n.*\.txt"):
        documents(tmp_path)
