"""Tokens packed into sequences of one length, so that no padding enters a mean or a fit.

Documents follow each other without a gap, as in training; what does not fill the last sequence is left out.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from shoal.batches import Batch, next_tokens
from shoal.errors import DataError
from shoal.sources.parts import NoPart, Part
from shoal.sources.split import hold_out
from shoal.sources.text import Documents
from shoal.sources.tokens import Task, TextFormat, Tokens, length_of

_HELD = 0.2
_SHORTEST = 16  # the usual length is halved down to this before a text is too short
_FEW = 4  # sequences that each part should have before the length is halved
_LOGITS = 2**28  # values in the logits of one mini-batch, 1 GiB

# A prime far above any seed a user types, so that seed and epoch do not collide.
_EPOCH = 1_000_003


@dataclass(frozen=True, eq=False)
class TokenPart:
    """Calibration, validation or test: sequences of tokens, int64, (sequences, length)."""

    sequences: Tensor
    task: Task
    start: int
    batch_size: int
    seed: int

    @property
    def size(self) -> int:
        """How many sequences."""
        return len(self.sequences)

    def loader(self, *, augment: bool = False, limit: int | None = None, epoch: int = 0) -> "TokenLoader":
        """Mini-batches of sequences; `augment` changes nothing here, an epoch other than 0 draws another order."""
        sequences = self.sequences[:limit]
        if epoch:
            generator = torch.Generator().manual_seed(self.seed + _EPOCH * epoch)
            sequences = sequences[torch.randperm(len(sequences), generator=generator)]
        return TokenLoader(TokenPart(sequences, self.task, self.start, self.batch_size, self.seed))


@dataclass(frozen=True, eq=False)
class TokenLoader:
    """A re-iterable of mini-batches."""

    part: TokenPart

    def __len__(self) -> int:
        return math.ceil(self.part.size / self.part.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for some in self.part.sequences.split(self.part.batch_size):
            yield to_batch(some, self.part.task, self.part.start)


def to_batch(sequences: Tensor, task: Task, start: int) -> Batch:
    """What the network is given, and where known what it should say. Nothing is padded, so there is no mask."""
    if task == "next":
        return Batch(kwargs={"input_ids": sequences}, target=next_tokens(sequences))
    if task == "none":
        return Batch(kwargs={"input_ids": sequences})
    half = sequences.shape[1] // 2
    rest = sequences[:, half:]
    shifted = torch.cat([torch.full_like(rest[:, :1], start), rest[:, :-1]], dim=1)
    return Batch(kwargs={"input_ids": sequences[:, :half], "decoder_input_ids": shifted}, target=rest)


def text_parts(
    found: Documents, tokens: Tokens, reading: TextFormat, *, seed: int, batch_size: int, limit: int | None
) -> tuple[Part, Part, Part]:
    """Calibration, validation and test, split by document, each packed on its own.

    Args:
        found: the documents.
        tokens: the tokenizer.
        reading: how the network reads.
        seed: of the split.
        batch_size: sequences in a mini-batch; fewer where their logits would take more than 1 GiB.
        limit: at most so many sequences of each part.

    Raises:
        DataError: a part does not fill one sequence.
    """
    length, least = length_of(reading), 1 if reading.length is not None else _FEW
    wanted = limit * length if limit is not None else None
    streams = [_stream(part, tokens, reading.task, wanted) for part in _split(found, seed)]
    while reading.length is None and length > _SHORTEST and min(map(len, streams)) < least * length:
        length //= 2
    size = max(1, min(batch_size, _LOGITS // (length * reading.vocabulary)))
    parts: list[Part] = []
    for name, stream in zip(("calibration", "validation", "test"), streams, strict=True):
        sequences = _packed(stream, length, tokens, reading.task)[:limit]
        reason = f"the {name} part holds {len(stream)} tokens, which do not fill one sequence of {length}"
        hint = "Give more text, or shorter sequences with --sequence-length."
        if not len(sequences) and name != "validation":
            raise DataError(reason, hint)
        whole = TokenPart(sequences, reading.task, reading.start, size, seed)
        parts.append(whole if len(sequences) else NoPart(reason, hint))
    return parts[0], parts[1], parts[2]


def _split(found: Documents, seed: int) -> list[list[str]]:
    train, test = found.train, found.test
    if test is None:
        kept, held = hold_out(len(train), _HELD, seed)
        train, test = [train[row] for row in kept], [train[row] for row in held]
    kept, held = hold_out(len(train), _HELD, seed)
    return [[train[row] for row in kept], [train[row] for row in held], test]


def _stream(documents: Iterable[str], tokens: Tokens, task: Task, wanted: int | None) -> Tensor:
    """All documents behind each other; a network that reads both ways gets its marks around each sequence instead."""
    before, after = (tokens.before, tokens.after) if task != "none" else ((), tokens.after)
    found: list[Tensor] = []
    count = 0
    for one in tokens.of(documents):
        found.append(torch.tensor(list(chain(before, one, after)), dtype=torch.int64))
        count += len(found[-1])
        if wanted is not None and count >= wanted:
            break
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def _packed(stream: Tensor, length: int, tokens: Tokens, task: Task) -> Tensor:
    before, after = (tokens.before, tokens.after) if task == "none" else ((), ())
    inner = length - len(before) - len(after)
    whole = stream[: len(stream) // inner * inner].view(-1, inner)
    marks = [torch.tensor(marks, dtype=torch.int64).expand(len(whole), -1) for marks in (before, after)]
    return torch.cat([marks[0], whole, marks[1]], dim=1)
