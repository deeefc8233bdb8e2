"""From documents to sequences of tokens, as one network reads them, packed so that no padding enters a mean or a fit.

Documents follow each other without a gap, as in training; what does not fill the last sequence is left out.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shoal.batches import Batch, next_tokens
from shoal.errors import DataError, SpecError
from shoal.files.reading import is_folder
from shoal.sources.parts import NoPart, Part, hold_out
from shoal.sources.text import Documents

Task = Literal["next", "rest", "none"]
_USUAL_LENGTH = 512
_AT_ONCE = 64  # documents handed to the tokenizer together
_NO_LIMIT = 10**6  # tokenizers without a limit say 1e30


@dataclass(frozen=True)
class TextFormat:
    """How a network reads text.

    Args:
        tokenizer: a folder or hub name to load it from; None if unknown.
        length: requested tokens per sequence; None for the default.
        vocabulary: how many tokens the network knows.
        positions: the longest sequence it takes; None where it has no limit.
        task: `next`: it predicts the next token at every position; `rest`: it reads the first half of a sequence and
            predicts the second; `none`: it reads in both directions and predicts no tokens.
        start: the token its decoder begins with, for `rest`.
        fetch: the tokenizer may be fetched from the network where it is not on this machine.
    """

    tokenizer: str | None
    length: int | None
    vocabulary: int
    positions: int | None
    task: Task
    start: int = 0
    fetch: bool = True


def infer_text_format(model: nn.Module, tokenizer: str | Path | None = None, length: int | None = None) -> TextFormat:
    """How a network of transformers reads text.

    Args:
        model: the network.
        tokenizer: a folder or hub name; by default where the network was loaded from.
        length: tokens in a sequence.

    Raises:
        DataError: not a network of transformers, or not one that reads text.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        raise DataError(
            f"text: needs a network of transformers, and {type(model).__name__} is not one",
            "Give FILE.py:FUNCTION that returns loaders of token tensors.",
        )
    text = config.get_text_config()
    vocabulary = getattr(text, "vocab_size", None)
    if not isinstance(vocabulary, int):
        raise DataError(f"{type(model).__name__} does not read text: it has no vocabulary", "Give data of its kind.")
    return TextFormat(
        tokenizer=str(tokenizer) if tokenizer is not None else (getattr(model, "name_or_path", "") or None),
        length=length,
        vocabulary=vocabulary,
        positions=_positions(model, text),
        task=_task(model, config),
        start=getattr(config, "decoder_start_token_id", None) or 0,
    )


def _positions(model: nn.Module, text: Any) -> int | None:
    limit = getattr(text, "max_position_embeddings", None)
    limits = [limit] if isinstance(limit, int) and limit > 0 else []
    for name, module in model.named_modules():
        # RoBERTa counts positions from behind the padding token, which takes as many away from its table.
        if "position" in name and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    return min(limits, default=None)


def _task(model: Any, config: Any) -> Task:
    if getattr(config, "is_encoder_decoder", False):
        return "rest"
    return "next" if hasattr(model, "can_generate") and model.can_generate() else "none"


def _check_vocabulary(tokenizer: Any, folder: Path) -> None:
    """Refuse a tokenizer without words, as transformers 5.0 makes one for a network that came without.

    Raises:
        ValueError: the folder holds no file of a vocabulary that its class reads.
    """
    names = [name for name in getattr(tokenizer, "vocab_files_names", {}).values() if isinstance(name, str)]
    if names and is_folder(folder) and not any((folder / name).exists() for name in names):
        raise ValueError(f"it holds none of {', '.join(names)}")


def open_tokenizer(text_format: TextFormat) -> Any:
    """The network's tokenizer; code next to it is never run.

    Raises:
        SpecError: transformers is missing.
        DataError: there is none, or it cannot be read.
    """
    hint = "Give its folder with --tokenizer PATH."
    if text_format.tokenizer is None:
        raise DataError("the tokenizer of this network is unknown: the network was not loaded from a folder", hint)
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise SpecError("transformers is not installed", "pip install 'shoal[text]'") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            text_format.tokenizer, trust_remote_code=False, local_files_only=not text_format.fetch
        )
        _check_vocabulary(tokenizer, Path(text_format.tokenizer))
        return tokenizer
    except Exception as error:
        reason = str(error).strip().splitlines()
        detail = reason[0] if reason else type(error).__name__
        raise DataError(f"there is no tokenizer in '{text_format.tokenizer}': {detail}", hint) from error


def length_of(text_format: TextFormat) -> int:
    """Tokens in a sequence.

    Raises:
        DataError: longer than the network takes, or too short to ask anything.
    """
    limit = text_format.positions if text_format.positions is not None else _NO_LIMIT
    if text_format.length is None:
        return min(_USUAL_LENGTH, limit)
    if text_format.length > limit:
        raise DataError(
            f"sequences of {text_format.length} tokens are longer than the network takes: it has {limit} positions",
            f"Give --sequence-length {limit} or less.",
        )
    if text_format.length < 4:
        raise DataError(f"sequences of {text_format.length} tokens are too short", "Give --sequence-length 4 or more.")
    return text_format.length


@dataclass(frozen=True, eq=False)
class Tokens:
    """A tokenizer that was found to fit its network, and what it puts around a text."""

    tokenizer: Any
    vocabulary: int
    before: tuple[int, ...]
    after: tuple[int, ...]

    def of(self, documents: Iterable[str]) -> Iterator[list[int]]:
        """The tokens of each document, nothing put around.

        Raises:
            DataError: a token that the network does not know.
        """
        source = iter(documents)
        while some := list(islice(source, _AT_ONCE)):
            for tokens in self.tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]:
                self.check(tokens)
                yield tokens

    def check(self, tokens: Sequence[int]) -> None:
        """Refuse tokens outside the vocabulary."""
        strange = next((token for token in tokens if not 0 <= token < self.vocabulary), None)
        if strange is not None:
            raise DataError(
                f"the tokenizer does not fit the network: it gives token {strange}, the network knows 0 to "
                f"{self.vocabulary - 1}",
                "Give the network's own with --tokenizer PATH.",
            )


def tokens_of(tokenizer: Any, text_format: TextFormat) -> Tokens:
    """The tokenizer with what it puts before and after a text, found on a text; an end token where it puts none.

    Raises:
        DataError: it does not fit the network.
    """
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    starts = [at for at in range(len(full) - len(plain) + 1) if full[at : at + len(plain)] == plain]
    before, after = (full[: starts[0]], full[starts[0] + len(plain) :]) if starts and plain else ([], [])
    end = tokenizer.eos_token_id
    if not after and end is not None and text_format.task != "none":
        after = [end]
    tokens = Tokens(tokenizer, text_format.vocabulary, tuple(before), tuple(after))
    tokens.check([*before, *after])
    return tokens


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
    documents: Documents, tokens: Tokens, text_format: TextFormat, *, seed: int, batch_size: int, limit: int | None
) -> tuple[Part, Part, Part]:
    """Calibration, validation and test, split by document, each packed on its own.

    Args:
        documents: the texts.
        tokens: the tokenizer.
        text_format: how the network reads.
        seed: of the split.
        batch_size: sequences in a mini-batch; fewer where their logits would take more than 1 GiB.
        limit: at most this many sequences of each part.

    Raises:
        DataError: a part does not fill one sequence.
    """
    length, least = length_of(text_format), 1 if text_format.length is not None else _FEW
    num_tokens = limit * length if limit is not None else None
    streams = [_stream(part, tokens, text_format.task, num_tokens) for part in _split(documents, seed)]
    while text_format.length is None and length > _SHORTEST and min(map(len, streams)) < least * length:
        length //= 2
    size = max(1, min(batch_size, _LOGITS // (length * text_format.vocabulary)))
    parts: list[Part] = []
    for name, stream in zip(("calibration", "validation", "test"), streams, strict=True):
        sequences = _packed(stream, length, tokens, text_format.task)[:limit]
        reason = f"the {name} part holds {len(stream)} tokens, which do not fill one sequence of {length}"
        hint = "Give more text, or shorter sequences with --sequence-length."
        if not len(sequences) and name != "validation":
            raise DataError(reason, hint)
        whole = TokenPart(sequences, text_format.task, text_format.start, size, seed)
        parts.append(whole if len(sequences) else NoPart(reason, hint))
    return parts[0], parts[1], parts[2]


def _split(documents: Documents, seed: int) -> list[list[str]]:
    train, test = documents.train, documents.test
    if test is None:
        kept, held = hold_out(len(train), _HELD, seed)
        train, test = [train[row] for row in kept], [train[row] for row in held]
    kept, held = hold_out(len(train), _HELD, seed)
    return [[train[row] for row in kept], [train[row] for row in held], test]


def _stream(documents: Iterable[str], tokens: Tokens, task: Task, num_tokens: int | None) -> Tensor:
    """All documents behind each other; a network that reads both ways gets its marks around each sequence instead."""
    before, after = (tokens.before, tokens.after) if task != "none" else ((), tokens.after)
    pieces: list[Tensor] = []
    count = 0
    for document in tokens.of(documents):
        pieces.append(torch.tensor(list(chain(before, document, after)), dtype=torch.int64))
        count += len(pieces[-1])
        if num_tokens is not None and count >= num_tokens:
            break
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)


def _packed(stream: Tensor, length: int, tokens: Tokens, task: Task) -> Tensor:
    before, after = (tokens.before, tokens.after) if task == "none" else ((), ())
    inner = length - len(before) - len(after)
    whole = stream[: len(stream) // inner * inner].view(-1, inner)
    marks = [torch.tensor(marks, dtype=torch.int64).expand(len(whole), -1) for marks in (before, after)]
    return torch.cat([marks[0], whole, marks[1]], dim=1)
