"""From documents to tokens as one network reads them: its tokenizer, its longest sequence, what is asked of it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from torch import nn

from shoal.errors import DataError, SpecError

Task = Literal["next", "rest", "none"]
_USUAL_LENGTH = 512
_AT_ONCE = 64  # documents handed to the tokenizer together
_NO_LIMIT = 10**6  # tokenizers without a limit say 1e30


@dataclass(frozen=True)
class TextFormat:
    """How a network reads text.

    Args:
        tokenizer: a folder or hub name to load it from; None where nobody knows.
        length: tokens in a sequence, as asked for; None for the usual one.
        vocabulary: how many tokens the network knows.
        positions: the longest sequence it takes; None where it has no limit.
        task: `next`: it says the next token at every position; `rest`: it reads the first half of a sequence and says
            the second; `none`: it reads both ways, and nothing is asked but that its outputs stay as they are.
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
        DataError: the network is none of transformers, or takes no text.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        raise DataError(
            f"text: needs a network of transformers, and {type(model).__name__} is none",
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
    said = getattr(text, "max_position_embeddings", None)
    limits = [said] if isinstance(said, int) and said > 0 else []
    for name, module in model.named_modules():
        # RoBERTa counts positions from behind the padding token, which takes as many away from its table.
        if "position" in name and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    return min(limits, default=None)


def _task(model: Any, config: Any) -> Task:
    if getattr(config, "is_encoder_decoder", False):
        return "rest"
    return "next" if hasattr(model, "can_generate") and model.can_generate() else "none"


def open_tokenizer(reading: TextFormat) -> Any:
    """The network's tokenizer; code that lies beside it is never run.

    Raises:
        SpecError: transformers is missing.
        DataError: there is none, or it cannot be read.
    """
    hint = "Give its folder with --tokenizer PATH."
    if reading.tokenizer is None:
        raise DataError("nobody knows the tokenizer of this network: it was not loaded from a folder", hint)
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise SpecError("transformers is not installed", "pip install 'shoal[text]'") from error
    try:
        return AutoTokenizer.from_pretrained(
            reading.tokenizer, trust_remote_code=False, local_files_only=not reading.fetch
        )
    except Exception as error:
        reason = str(error).strip().splitlines()
        said = reason[0] if reason else type(error).__name__
        raise DataError(f"there is no tokenizer in '{reading.tokenizer}': {said}", hint) from error


def length_of(reading: TextFormat) -> int:
    """Tokens in a sequence.

    Raises:
        DataError: longer than the network takes, or too short to ask anything.
    """
    limit = reading.positions if reading.positions is not None else _NO_LIMIT
    if reading.length is None:
        return min(_USUAL_LENGTH, limit)
    if reading.length > limit:
        raise DataError(
            f"sequences of {reading.length} tokens are longer than the network takes: it has {limit} positions",
            f"Give --sequence-length {limit} or less.",
        )
    if reading.length < 4:
        raise DataError(f"sequences of {reading.length} tokens are too short", "Give --sequence-length 4 or more.")
    return reading.length


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


def tokens_of(tokenizer: Any, reading: TextFormat) -> Tokens:
    """The tokenizer with what it puts before and after a text, found on a text; an end token where it puts none.

    Raises:
        DataError: it does not fit the network.
    """
    plain = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    starts = [at for at in range(len(full) - len(plain) + 1) if full[at : at + len(plain)] == plain]
    before, after = (full[: starts[0]], full[starts[0] + len(plain) :]) if starts and plain else ([], [])
    end = tokenizer.eos_token_id
    if not after and end is not None and reading.task != "none":
        after = [end]
    found = Tokens(tokenizer, reading.vocabulary, tuple(before), tuple(after))
    found.check([*before, *after])
    return found
