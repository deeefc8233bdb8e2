from dataclasses import replace
from types import SimpleNamespace

import pytest
import transformers
from torch import nn

import language
from families import family
from shoal.errors import DataError
from shoal.sources.tokens import TextFormat, infer_text_format, length_of, open_tokenizer, tokens_of

READING = TextFormat("somewhere", None, vocabulary=128, positions=64, task="next")


@pytest.mark.parametrize(
    ("name", "task", "positions"),
    [
        ("llama", "next", 40),
        ("gpt2", "next", 40),
        ("bert", "none", 40),
        ("roberta", "none", 39),  # 40 rows, the padding token at 0 and positions from 1
        ("t5", "rest", None),
        ("clip", "none", 40),
    ],
)
def test_what_a_network_says_of_itself(name, task, positions):
    found = infer_text_format(family(name)[0])
    assert (found.task, found.positions, found.vocabulary, found.length) == (task, positions, 99, None)


def test_where_the_tokenizer_lies(tmp_path):
    assert infer_text_format(language.llama()).tokenizer is None
    language.llama().save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert infer_text_format(loaded).tokenizer == str(tmp_path)
    assert infer_text_format(loaded, tmp_path / "other").tokenizer == str(tmp_path / "other")


def test_the_decoder_begins_with_its_own_token():
    assert infer_text_format(family("bart")[0]).start == 2


def test_networks_that_do_not_read():
    with pytest.raises(DataError, match=r"needs a network of transformers, and Linear is not one\n.*FILE\.py:FUNCTION"):
        infer_text_format(nn.Linear(2, 2))
    with pytest.raises(DataError, match="ViTForImageClassification does not read text"):
        infer_text_format(family("vit")[0])


@pytest.mark.parametrize(
    ("length", "positions", "expected"), [(None, 64, 64), (None, None, 512), (None, 4096, 512), (64, 64, 64)]
)
def test_length(length, positions, expected):
    assert length_of(replace(READING, length=length, positions=positions)) == expected


def test_lengths_that_do_not_fit():
    with pytest.raises(DataError, match=r"sequences of 65 tokens are longer .* 64 positions\n.*--sequence-length 64"):
        length_of(replace(READING, length=65))
    with pytest.raises(DataError, match="3 tokens are too short"):
        length_of(replace(READING, length=3))


def test_a_tokenizer_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"was not loaded from a folder\n.*--tokenizer"):
        open_tokenizer(replace(READING, tokenizer=None))
    with pytest.raises(DataError, match=r"there is no tokenizer in .*\n.*--tokenizer"):
        open_tokenizer(replace(READING, tokenizer=str(tmp_path)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("tokenizer")
    language.save_tokenizer(place)
    return place


def test_text_becomes_tokens_and_back(folder):
    tokenizer = open_tokenizer(replace(READING, tokenizer=str(folder)))
    found = tokens_of(tokenizer, READING)
    texts = ["a fish swims", "deep water"] * 40
    tokens = list(found.of(texts))
    assert [tokenizer.decode(one) for one in tokens] == texts
    assert not any({1, 2} & set(one) for one in tokens)


@pytest.mark.parametrize(
    ("begins", "marks", "task", "before", "after"),
    [
        (True, False, "next", (1,), (2,)),
        (False, False, "next", (), (2,)),
        (False, False, "none", (), ()),
        (False, True, "none", (1,), (2,)),
        (False, True, "rest", (1,), (2,)),
    ],
)
def test_what_stands_around_a_text(tmp_path, begins, marks, task, before, after):
    tokenizer = language.save_tokenizer(tmp_path, begins=begins, marks=marks)
    found = tokens_of(tokenizer, replace(READING, task=task))
    assert (found.before, found.after) == (before, after)


def test_a_tokenizer_of_another_network(folder):
    tokenizer = open_tokenizer(replace(READING, tokenizer=str(folder)))
    found = tokens_of(tokenizer, replace(READING, vocabulary=40))
    with pytest.raises(DataError, match=r"does not fit the network: it gives token \d+, the network knows 0 to 39\n"):
        list(found.of([language.text(40)]))


@pytest.mark.parametrize(("names", "written", "ok"), [
    ({"vocab_file": "tokenizer.model", "tokenizer_file": "tokenizer.json"}, "config.json", False),
    ({"vocab_file": "tokenizer.model", "tokenizer_file": "tokenizer.json"}, "tokenizer.json", True),
    ({}, "config.json", True),
])  # fmt: skip
def test_a_tokenizer_made_of_nothing_is_refused(names, written, ok, tmp_path, monkeypatch):
    """In transformers 5.0 a folder without one gets one whose every word is unknown."""
    made = SimpleNamespace(vocab_files_names=names)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: made)
    (tmp_path / written).write_text("{}")
    text_format = TextFormat(str(tmp_path), None, 10, None, "next")
    if ok:
        assert open_tokenizer(text_format) is made
    else:
        with pytest.raises(
            DataError, match=r"there is no tokenizer in .*: it holds none of tokenizer.model, tokenizer.js"
        ):
            open_tokenizer(text_format)
