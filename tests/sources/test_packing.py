from dataclasses import replace

import pytest
import torch

import language
from shoal.errors import DataError
from shoal.sources.text import Documents
from shoal.sources.tokens import TextFormat, TokenPart, text_parts, to_batch, tokens_of

READING = TextFormat("somewhere", 16, vocabulary=128, positions=64, task="next", start=9)
DOCUMENTS = Documents(language.text(2000).split("\n\n"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return language.save_tokenizer(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def marking(tmp_path_factory):
    return language.save_tokenizer(tmp_path_factory.mktemp("marks"), marks=True)


def parts(tokenizer, reading=READING, found=DOCUMENTS, *, seed=0, batch_size=4, limit=None):
    return text_parts(found, tokens_of(tokenizer, reading), reading, seed=seed, batch_size=batch_size, limit=limit)


def flat(part):
    return part.sequences.flatten().tolist()


def test_documents_follow_each_other_without_padding(tokenizer):
    found = Documents(["the fish"] * 30, ["deep water", "a shoal turns"] * 6)
    test = parts(tokenizer, found=found)[2]
    expected = [
        token for text in found.test for token in [1, *tokenizer(text, add_special_tokens=False)["input_ids"], 2]
    ]
    assert test.sequences.shape[1] == 16
    assert flat(test) == expected[: test.sequences.numel()]
    assert len(expected) - test.sequences.numel() < 16
    assert 0 not in flat(test)


def test_no_document_is_in_two_parts(tokenizer):
    # Each document is one word said over and over, so that its tokens tell it apart.
    words = [f"{word} " * 40 for word in language.WORDS[2:14]]
    found = parts(tokenizer, found=Documents(words))
    special = set(tokenizer(" ".join("abcdefghijklmnopqrstuvwxyz"))["input_ids"]) | {0, 1, 2, 3}
    seen = [{tokenizer.decode([token]).strip() for token in flat(part) if token not in special} for part in found]
    assert all(seen)
    assert len(set.union(*seen)) == sum(map(len, seen))


def test_the_split_follows_the_seed(tokenizer):
    first, again, other = (parts(tokenizer, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(a.sequences, b.sequences) for a, b in zip(first, again, strict=True))
    assert flat(first[2]) != flat(other[2])


def test_test_documents_that_are_set_apart_stay_apart(tokenizer):
    found = replace(DOCUMENTS, test=["water " * 100])
    for seed in (0, 1):
        assert set(flat(parts(tokenizer, found=found, seed=seed)[2])) <= {
            1,
            2,
            *tokenizer("water water", add_special_tokens=False)["input_ids"],
        }


def test_limit_and_order(tokenizer):
    part = parts(tokenizer, limit=5)[0]
    assert part.size == 5
    assert flat(part) == flat(parts(tokenizer)[0])[: 5 * 16]
    sizes = [batch.size for batch in part.loader()]
    assert sizes == [4, 1]
    assert len(part.loader()) == 2
    whole = torch.cat([batch.kwargs["input_ids"] for batch in part.loader()])
    assert torch.equal(whole, torch.cat([batch.kwargs["input_ids"] for batch in part.loader(augment=True)]))
    later = torch.cat([batch.kwargs["input_ids"] for batch in part.loader(epoch=1)])
    assert not torch.equal(whole, later)
    assert sorted(map(tuple, whole.tolist())) == sorted(map(tuple, later.tolist()))
    assert [batch.size for batch in part.loader(limit=3)] == [3]


def test_next_token():
    batch = to_batch(torch.tensor([[5, 6, 7, 8]]), "next", 9)
    assert batch.kwargs.keys() == {"input_ids"}
    assert batch.target.tolist() == [[6, 7, 8, -100]]


def test_reading_both_ways(marking):
    part = parts(marking, replace(READING, task="none"))[0]
    assert (part.sequences[:, 0] == 1).all()
    assert (part.sequences[:, -1] == 2).all()
    assert (part.sequences[:, 1:-1] != 1).all()
    batch = next(iter(part.loader()))
    assert (batch.kwargs.keys(), batch.target) == ({"input_ids"}, None)


def test_the_rest_of_a_text():
    batch = to_batch(torch.tensor([[4, 5, 6, 7, 8, 10]]), "rest", 9)
    assert batch.kwargs["input_ids"].tolist() == [[4, 5, 6]]
    assert batch.kwargs["decoder_input_ids"].tolist() == [[9, 7, 8]]
    assert batch.target.tolist() == [[7, 8, 10]]


def test_the_usual_length_gives_way_to_short_texts(tokenizer):
    usual = replace(READING, length=None)
    assert parts(tokenizer, usual)[0].sequences.shape[1] == 64
    few = Documents(language.text(500).split("\n\n"))
    found = parts(tokenizer, usual, few)
    assert found[0].sequences.shape[1] < 64
    assert min(part.size for part in found) >= 4


def test_too_little_text(tokenizer):
    with pytest.raises(DataError, match=r"part holds \d+ tokens, which do not fill one sequence of 64\n.*--sequence"):
        parts(tokenizer, replace(READING, length=64), Documents(["a fish", "deep water", "small blue fish", "light"]))


def test_logits_stay_within_memory(tokenizer, monkeypatch):
    monkeypatch.setattr("shoal.sources.tokens._LOGITS", 3 * 16 * 128)
    assert [part.batch_size for part in parts(tokenizer, batch_size=8)] == [3, 3, 3]
    monkeypatch.setattr("shoal.sources.tokens._LOGITS", 1)
    assert parts(tokenizer, batch_size=8)[0].batch_size == 1


def test_a_part_of_its_own():
    part = TokenPart(torch.arange(12).view(3, 4), "none", 0, 2, 0)
    assert [batch.kwargs["input_ids"].tolist() for batch in part.loader()] == [
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[8, 9, 10, 11]],
    ]


def test_validation_follows_the_seed_where_test_is_set_apart(tokenizer):
    found = replace(DOCUMENTS, test=DOCUMENTS.train[:20])
    one, other = (parts(tokenizer, found=found, seed=seed) for seed in (0, 1))
    assert flat(one[1]) != flat(other[1])
    assert flat(one[2]) == flat(other[2])
