"""Perplexity by document, exact answers of small tasks, and paired intervals."""

import math
import re
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WORDS = (
    "river stone apple window garden silver morning paper bridge winter yellow market forest candle doctor summer"
).split()
_RESAMPLES = 4000
Item = tuple[list[int], list[int]]


@torch.no_grad()
def losses(model: Any, rows: Tensor) -> list[float]:
    """The mean loss of a token in each document, in nats."""
    found = []
    for ids in rows.split(4):
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        each = nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        found += each.mean(1).tolist()
    return found


def tasks(model: Any, tokenizer: Any, texts: Sequence[str], count: int) -> dict[str, list[Item]]:
    """Prompts and answers as token ids, `count` of each kind, only such as the original answers to the token."""
    kinds = {"copying": _copying(tokenizer), "counting": _counting(tokenizer), "cloze": _cloze(tokenizer, texts)}
    known = {
        name: (item for item in islice(items, 8 * count) if exact(model, [item])[0]) for name, items in kinds.items()
    }
    return {name: list(islice(items, count)) for name, items in known.items()}


def _ids(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def _copying(tokenizer: Any) -> Iterator[Item]:
    """Words to repeat, after two examples."""
    rng = np.random.default_rng(0)
    while True:
        *shown, asked = (" ".join(rng.choice(WORDS, 4, replace=False)) for _ in range(3))
        examples = "".join(f"Words: {text}\nAgain: {text}\n" for text in shown)
        yield _ids(tokenizer, f"{examples}Words: {asked}\nAgain:"), _ids(tokenizer, f" {asked}\n")


def _counting(tokenizer: Any) -> Iterator[Item]:
    """Numbers to go on with."""
    for first in np.random.default_rng(0).permutation(np.arange(11, 900)):
        shown = ", ".join(map(str, range(first, first + 6)))
        yield _ids(tokenizer, f"{shown},"), _ids(tokenizer, f" {first + 6}, {first + 7}, {first + 8},")


def _cloze(tokenizer: Any, texts: Sequence[str]) -> Iterator[Item]:
    """A long word of a held-out text that comes again."""
    for text in texts:
        match = re.search(r"\b([A-Z][a-z]{5,})\b.{80,400}?( \1)\b", text, re.DOTALL)
        if match:
            yield _ids(tokenizer, text[max(0, match.start() - 80) : match.start(2)]), _ids(tokenizer, match[2])


@torch.no_grad()
def exact(model: Any, items: Sequence[Item]) -> list[int]:
    """For each item whether greedy decoding gives the answer to the token: read off one forward over both."""
    right = []
    for prompt, answer in items:
        logits = model(input_ids=torch.tensor([prompt + answer], device=model.device), use_cache=False).logits[0]
        said = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
        right.append(int(said == answer))
    return right


@torch.no_grad()
def latency_shares(model: Any, original: Any, rows: Tensor, pairs: int = 5, tokens: int = 8) -> dict[str, float]:
    """Time as a share of the original's: for a whole prompt at once, and for each token after it, from the cache.

    In pairs, one network right after the other, so that what else a machine does strikes both; the middle ratio counts.
    """
    ratios: dict[str, list[float]] = {"prefill": [], "token": []}
    for index in range(pairs + 1):
        (prefill, token), (prefill_before, token_before) = (
            _seconds(each, rows[index % len(rows)][None], tokens) for each in (model, original)
        )
        if index:  # the first pair warms up
            ratios["prefill"].append(prefill / prefill_before)
            ratios["token"].append(token / token_before)
    return {name: float(np.median(values)) for name, values in ratios.items()}


def _seconds(model: Any, ids: Tensor, tokens: int) -> tuple[float, float]:
    start = _now(ids.device)
    output = model(input_ids=ids, use_cache=True)
    prefilled = _now(ids.device)
    for _ in range(tokens):
        following = output.logits[:, -1:].argmax(-1)
        output = model(input_ids=following, past_key_values=output.past_key_values, use_cache=True)
    return prefilled - start, (_now(ids.device) - prefilled) / tokens


def _now(device: torch.device) -> float:
    """The clock, when all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def paired_interval(first: Sequence[float], second: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The mean difference by document, and its 95 % bootstrap interval."""
    gaps = np.asarray(first) - np.asarray(second)
    means = gaps[np.random.default_rng(seed).integers(0, len(gaps), (_RESAMPLES, len(gaps)))].mean(1)
    return float(gaps.mean()), *(float(value) for value in np.quantile(means, [0.025, 0.975]))


def perplexity(values: Sequence[float]) -> float:
    """Of documents of one length."""
    return math.exp(sum(values) / len(values))
