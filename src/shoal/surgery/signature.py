"""The signature by which a plan recognises its network, and example inputs made from the plan's input specs."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.blocks import Chain
from shoal.errors import PlanError
from shoal.plan import CONSTANT, InputSpec, NetworkSignature


def signature_of(model: nn.Module, chain: Chain) -> NetworkSignature:
    """The names, dtypes and shapes of the state dict, and one line a block."""
    lines = [
        f"{block.path}:{block.kind}:{block.shortcut}:{list(block.in_shape)}->{list(block.out_shape)}" for block in chain
    ]
    return NetworkSignature(state=state_of(model), chain=lines)


def state_of(model: nn.Module) -> dict[str, str]:
    """Name to 'dtype[shape]' for every tensor of the state dict."""
    return {
        name: f"{_dtype_name(tensor.dtype)}[{','.join(map(str, tensor.shape))}]"
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor)
    }


def input_specs(batch: Batch) -> list[InputSpec]:
    """What the network was called with.

    Raises:
        PlanError: an input is neither a tensor nor a constant that JSON holds, so a plan could not remember it.
    """
    named = [(None, value) for value in batch.args] + list(batch.kwargs.items())
    return [_input_spec(keyword, value) for keyword, value in named]


def _input_spec(keyword: str | None, value: Any) -> InputSpec:
    if isinstance(value, Tensor):
        return InputSpec(shape=list(value.shape[1:]), dtype=_dtype_name(value.dtype), keyword=keyword)
    if value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value)):
        return InputSpec(shape=[], dtype=CONSTANT, keyword=keyword, constant=value)
    raise PlanError(
        f"an input of the network is a {type(value).__name__}: a plan remembers tensors, numbers, strings, True, False "
        "and None",
        "Wrap the network so that its inputs are of these kinds.",
    )


def example_of(specs: list[InputSpec], batch: int = 2) -> Batch:
    """An input of zeros that the network can be traced with."""
    args: list[object] = []
    kwargs: dict[str, object] = {}
    for spec in specs:
        value = _input_of(spec, batch)
        if spec.keyword is None:
            args.append(value)
        else:
            kwargs[spec.keyword] = value
    return Batch(tuple(args), kwargs)


def _input_of(spec: InputSpec, batch: int) -> object:
    if spec.is_constant:
        return spec.constant
    dtype = getattr(torch, spec.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise PlanError(f"the plan has an input of dtype '{spec.dtype}', which torch does not know", "Mend it.")
    return torch.zeros((batch, *spec.shape), dtype=dtype)


def random_like(batch: Batch, seed: int = 0) -> Batch:
    """Random numbers in the place of zeros, so that an export is compared on something; integers stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    specs = input_specs(batch)
    filled = example_of(specs, batch.size)
    for tensor in filled.tensors:
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return filled


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
