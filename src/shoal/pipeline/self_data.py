"""Sequences that a causal language model writes itself, to be recovered on."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch, batches, device_of
from shoal.errors import DataError, ModelRaisedError, UsageError, check_memory
from shoal.preserve import evaluating

_PROMPT_SHARE = 8
"""A prompt is the first eighth of a sequence: it leads into the domain, and the rest is the network's own."""

_LEAVE_OUT = "Leave --self-data (self_data) out."


def check_self_data(model: nn.Module, example: Batch) -> None:
    """Refuse a network that writes no text, or data that nothing can be written in the form of.

    Args:
        model: the original.
        example: the first calibration mini-batch.

    Raises:
        UsageError: no `generate` of a causal language model.
        DataError: inputs other than sequences of tokens, and their mask.
    """
    can = getattr(model, "can_generate", None)
    encoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if not callable(getattr(model, "generate", None)) or not callable(can) or not can() or encoder:
        raise UsageError(
            f"{type(model).__name__} cannot write its own data: that is for causal language models of transformers",
            _LEAVE_OUT,
        )
    _prompts(example)


def write_self_data(model: nn.Module, calibration: Iterable[Any], count: int, seed: int) -> list[Batch]:
    """Mini-batches in the form of the calibration data, all but the prompts sampled from the network.

    The sampling is plain (temperature 1, nothing cut off), as recovery is to meet what the network holds likely. It
    goes on after an end of text, as packed training data do: every sequence has the full length.

    Args:
        model: the original; it is left as it was.
        calibration: where the prompts come from, again and again until there are enough.
        count: how many sequences.
        seed: of the sampling; torch's own generators are left as they were.

    Raises:
        DataError: as `check_self_data` does, for any of the mini-batches.
    """
    device = device_of(model)
    written: list[Batch] = []
    missing = count
    with evaluating(model):
        torch.manual_seed(seed)
        while missing > 0:
            before = missing
            for batch in batches(calibration, device):
                prompts, length = _prompts(batch)
                prompts = prompts[:missing]
                if len(prompts):
                    written.append(_in_form(batch, _continued(model, prompts, length).cpu()))
                    missing -= len(prompts)
                if missing <= 0:
                    break
            if missing == before:
                raise DataError("no calibration sequence begins with tokens that are not padding", _LEAVE_OUT)
    return written


def _prompts(batch: Batch) -> tuple[Tensor, int]:
    """The first tokens of the sequences that do not begin with padding, and the length of a sequence."""
    inputs = {**{str(number): value for number, value in enumerate(batch.args)}, **batch.kwargs}
    mask = inputs.pop("attention_mask", None)
    tokens = next(iter(inputs.values()), None)
    if len(inputs) != 1 or not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.is_floating_point():
        raise DataError(
            f"the inputs {', '.join(inputs) or '(none)'} are not sequences of tokens alone, which the network could"
            " write itself",
            _LEAVE_OUT,
        )
    length = tokens.shape[1]
    if length < 2:
        raise DataError("sequences of one token leave nothing to write", _LEAVE_OUT)
    prompts = tokens[:, : max(1, length // _PROMPT_SHARE)]
    if isinstance(mask, Tensor):
        if mask.shape != tokens.shape:
            raise DataError(f"the attention mask has the shape {tuple(mask.shape)}, the tokens {tuple(tokens.shape)}")
        prompts = prompts[(mask[:, : prompts.shape[1]] != 0).all(dim=1)]
    return prompts, length


def _in_form(batch: Batch, tokens: Tensor) -> Batch:
    """The tokens as inputs like those of `batch`; nothing of them is padding."""
    if batch.args:
        return Batch((tokens,), {name: torch.ones_like(tokens) for name in batch.kwargs})
    masks = {name: torch.ones_like(tokens, dtype=value.dtype) for name, value in batch.kwargs.items()}
    return Batch(kwargs={name: masks[name] if name == "attention_mask" else tokens for name in batch.kwargs})


def _continued(model: Any, prompts: Tensor, length: int) -> Tensor:
    from transformers import GenerationConfig

    own = model.generation_config
    # What `generate` is not told it takes from the network's configuration: ends of text, penalties, top-k.
    model.generation_config = GenerationConfig(pad_token_id=0)
    try:
        tokens: Tensor = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=length - prompts.shape[1],
        )
    except Exception as error:
        shape = tuple(prompts.shape)
        check_memory(error, f"while the network went on from prompts of shape {shape}")
        raise ModelRaisedError(
            f"`generate` raised {type(error).__name__} on prompts of shape {shape}: {error}", _LEAVE_OUT
        ) from error
    finally:
        model.generation_config = own
    return tokens
