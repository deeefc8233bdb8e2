"""Sequence to sequence: text or tokens for text, speech or images; judged by what the network generates."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shoal.batches import IGNORED, Batch, call
from shoal.errors import UsageError, check_memory
from shoal.measure.output_reading import Expectation
from shoal.outputs import Outputs
from shoal.tasks.libraries import torchmetrics_functional
from shoal.tasks.task import Metric, Reference, Row, Task, main_tensor, module_names

Decode = Callable[[Any], Sequence[str]]
_DECODER_INPUTS = ("decoder_input_ids", "decoder_attention_mask", "decoder_inputs_embeds", "labels")
_LONGEST = 128


@dataclass(frozen=True, eq=False)
class Generated:
    """What a network generated.

    Args:
        tokens: (samples, positions), padded.
        special: tokens that start, end or pad a text.
        padding: the token that pads.
    """

    tokens: Tensor
    special: frozenset[int]
    padding: int


def _generate(model: nn.Module, batch: Batch) -> Generated:
    """What the network generates, greedily, from the inputs of its encoder; of CTC the likeliest letters."""
    if _is_ctc(model):
        return _letters(model, batch)
    generate = getattr(model, "generate", None)
    if not callable(generate):
        raise UsageError(
            f"{type(model).__name__} has no generate(), which error rates of a seq2seq network are measured by",
            "Name the task as regression or classification, or pass a metric of your own.",
        )
    inputs = {name: value for name, value in batch.kwargs.items() if name not in _DECODER_INPUTS}
    labels = batch.target
    longest = int(labels.shape[1]) + 16 if isinstance(labels, Tensor) and labels.dim() == 2 else _LONGEST
    positions = getattr(getattr(model, "config", None), "max_target_positions", None)
    longest = min(longest, positions - 8) if isinstance(positions, int) else longest
    try:
        with _quietly():
            tokens = generate(*batch.args, **inputs, do_sample=False, num_beams=1, max_new_tokens=longest)
    except Exception as error:
        check_memory(error, "while sequences were generated")
        raise UsageError(
            f"generate() of {type(model).__name__} raised {type(error).__name__}: {error}",
            "Give mini-batches with the inputs of the encoder by name, as a processor makes them.",
        ) from error
    special = _special_tokens(model)
    return Generated(torch.as_tensor(tokens).detach().cpu(), frozenset(special), special[0] if special else IGNORED)


@contextmanager
def _quietly() -> Iterator[None]:
    """Inside the context transformers does not warn, at each call, that the network's own limit gives way to ours."""
    logger = logging.getLogger("transformers.generation.utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _is_ctc(model: nn.Module) -> bool:
    return any(name.endswith("ForCTC") for name in module_names(model))


def _letters(model: Any, batch: Batch) -> Generated:
    """The likeliest letter of each moment, repetitions once, blanks left out.

    Source: Graves et al. 2006, Connectionist temporal classification, section 3.2 (best path decoding).
    """
    best = main_tensor(call(model, batch), "logits").argmax(dim=-1).cpu()
    blank = int(getattr(model.config, "pad_token_id", None) or 0)
    mask, lengths = batch.kwargs.get("attention_mask"), [best.shape[1]] * len(best)
    if isinstance(mask, Tensor):
        lengths = model._get_feat_extract_output_lengths(mask.sum(dim=-1)).tolist()
    rows = [moments[: int(length)].unique_consecutive() for moments, length in zip(best, lengths, strict=True)]
    rows = [letters[letters != blank] for letters in rows]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=blank)
    return Generated(tokens, frozenset([blank]), blank)


def _special_tokens(model: nn.Module) -> list[int]:
    """The tokens that pad, end and start a text, by the network's configuration."""
    configs = [getattr(model, name, None) for name in ("generation_config", "config")]
    values = [
        getattr(config, name, None)
        for name in ("pad_token_id", "eos_token_id", "decoder_start_token_id", "bos_token_id")
        for config in configs
    ]
    flat = [token for value in values for token in (value if isinstance(value, (list, tuple)) else [value])]
    return list(dict.fromkeys(token for token in flat if isinstance(token, int)))


def _token_texts(tokens: Tensor, special: frozenset[int]) -> list[str]:
    """Every token is a word: the error rate of tokens, where nobody gave a tokenizer."""
    return [" ".join(str(token) for token in row if token not in special and token >= 0) for row in tokens.tolist()]


def _error_counts(decode: Decode | None) -> Callable[[Any, Reference, Batch], list[Row]]:
    def rows(output: Generated, reference: Reference, batch: Batch) -> list[Row]:
        """The edits that make a text the reference, and the words of the reference, by torchmetrics."""
        error_rate = torchmetrics_functional("text", "word_error_rate")
        truth = reference.value.tokens if reference.against == "original" else reference.value.detach().cpu()
        truth = truth.masked_fill(truth == IGNORED, output.padding)
        if decode is not None:
            expected, answered = decode(truth), decode(output.tokens)
        else:
            expected, answered = (_token_texts(tokens, output.special) for tokens in (truth, output.tokens))
        counts = []
        for text, words in zip(answered, expected, strict=True):
            length = len(words.split())
            edits = float(error_rate([text], [words])) * length if length else float(len(text.split()))
            counts.append(np.array([round(edits), length]))
        return counts

    return rows


def _rate(rows: Sequence[Row]) -> float:
    """Edits by words; NaN where there are none, as where all that should be heard is silence."""
    edits, words = np.sum(rows, axis=0)
    return float(edits / words) if words else float("nan")


def _has_tokens(output: Any, labels: Any) -> bool:
    return isinstance(labels, Tensor) and not labels.is_floating_point() and labels.dim() == 2


def _recognize(model: nn.Module, outputs: Outputs, labels: Tensor | None) -> str | None:
    if _is_ctc(model):
        return f"{type(model).__name__} writes letters down as it hears them"
    config = getattr(model, "config", None)
    if not callable(getattr(model, "generate", None)) or not getattr(config, "is_encoder_decoder", False):
        return None
    names = [name.rsplit(".", 1)[-1] for name in module_names(model)]
    return next((f"{name} has an encoder and a decoder" for name in names if "For" in name or "LMHead" in name), None)


def _obstacle(model: nn.Module, tensors: Mapping[str, Tensor]) -> str | None:
    if _is_ctc(model) or callable(getattr(model, "generate", None)):
        return None
    return "it needs a network that writes sequences, with generate() or for CTC"


def seq2seq(decode: Decode | None = None) -> Task:
    """The task of networks that generate sequences.

    Args:
        decode: texts of tokens, such as `tokenizer.batch_decode` with `skip_special_tokens=True` and the normalisation
            that words are compared after; by default tokens are compared, and the figure is the error rate of tokens.
    """
    label = "Word error rate" if decode is not None else "Token error rate"
    metric = Metric(
        "wer" if decode is not None else "ter",
        label,
        _error_counts(decode),
        _rate,
        "%",
        "lower",
        fits=_has_tokens,
        perfect=0.0,
        respond=_generate,
        bounded=True,
        chance=1.0,
    )
    return replace(_SEQ2SEQ, metrics=(metric,))


_SEQ2SEQ = Task(
    "seq2seq",
    expectation=Expectation("seq2seq", "classes", axis=-1),
    outputs=("logits",),
    recognize=_recognize,
    obstacle=_obstacle,
)
SEQ2SEQ = seq2seq()
