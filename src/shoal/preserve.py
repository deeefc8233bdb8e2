"""Inspect a model without leaving a trace: mode, gradients, hooks, random state and patched methods are restored."""

import copy
import gc
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from shoal.alignment import align_
from shoal.errors import NonFiniteError, ShoalError, SurgeryError, check_memory
from shoal.intake import check_usable, duplicate
from shoal.offloaded import weights


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode, without gradients, random state untouched; everything is restored at the end.

    Batch-norm statistics do not move in eval mode, so they need no copy. What torch.compile made of it runs as it was
    written, so that hooks are called and outputs are those of the plain network.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.random.fork_rng(devices=cuda_devices(model)), torch.no_grad(), _uncompiled():
            _set_modes([(module, False) for module, _ in modes])
            yield model
    finally:
        _set_modes(modes)


def _set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    """Set the modes that differ: to set an attribute of a module is slow, and most are in eval mode already."""
    for module, training in modes:
        if module.training is not training:
            module.training = training


def _uncompiled() -> AbstractContextManager[None]:
    # Without dynamo in the process nothing was compiled, and bringing it in takes a second.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


@contextmanager
def collecting_seldom() -> Iterator[None]:
    """Look for cycles among Python's objects a hundred times less often, for work that makes many which all stay.

    Of a network of a thousand blocks half the time of a trace went into looking at them again and again.
    """
    before = gc.get_threshold()
    try:
        gc.set_threshold(100 * before[0], *before[1:])
        yield
    finally:
        gc.set_threshold(*before)


def copied(model: nn.Module, parameters: Mapping[int, nn.Parameter] | None = None) -> nn.Module:
    """A copy that shares nothing with the model, its tensors in memory of torch's own; no random number is drawn.

    It is that of the plain network where torch.compile wraps it or parts of it.

    Args:
        model: the network, or a part of it.
        parameters: those of the copy by the identity of the model's that they stand for; others are copied.

    Raises:
        SurgeryError, WeightsError: it cannot be copied, or not be worked on, see `check_usable`.
    """
    try:
        # A model's own way of copying itself may draw random numbers, say to build a twin before filling it.
        with torch.random.fork_rng(devices=cuda_devices(model)):
            twin = duplicate(model, parameters)
    except ShoalError:
        raise
    except Exception as error:
        check_memory(error, f"while {type(model).__name__} was copied")
        raise SurgeryError(
            f"{type(model).__name__} cannot be copied: {error}",
            "Shoal works on a copy: take out of the network what copy.deepcopy refuses.",
        ) from error
    return align_(twin)  # deepcopy leaves a buffer that is a part of something larger where it was


def shared_copy(model: nn.Module, holder: nn.Module | None = None) -> nn.Module:
    """A copy with modules, buffers and parameters of its own, but the parameters lie in memory of the holder's.

    It takes no memory for weights, and is as good as `copied` where nobody writes to them: to set some, give them
    memory of their own first, see `own_`. What a run of the holder has written to is copied: it would do so again.

    Args:
        model: the network, or a part of it.
        holder: of the same parameters by name and value; by default the model itself.

    Raises:
        SurgeryError, WeightsError: see `copied`.
    """
    held = dict((holder or model).named_parameters(remove_duplicate=False))
    shared = {}
    for name, parameter in model.named_parameters():
        other = held.get(name)
        if other is not None and _can_share(parameter, other):
            shared[id(parameter)] = nn.Parameter(other.detach(), parameter.requires_grad)  # writing to it shows
    return copied(model, shared)


def _can_share(parameter: nn.Parameter, other: nn.Parameter) -> bool:
    """Whether a copy of a parameter may lie where another one does."""
    if type(parameter) is not nn.Parameter or type(other) is not nn.Parameter:
        return False
    if other.is_meta or other.is_inference() or other._version:  # a parameter is made at version 0
        return False
    return (parameter.shape, parameter.dtype, parameter.device) == (other.shape, other.dtype, other.device)


def own_(module: nn.Module) -> nn.Module:
    """Give all parameters memory of their own, so that they can be written to; they stay the same objects."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()
    return module


def copied_arguments(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """A copy of what a module was given, or is about to be: it may write into tensors, dicts and objects that it gets.

    Modules, and what cannot be copied, are handed on as they are; what stands in two places does so in the copy.

    Args:
        value: arguments, in any containers.
        memo: the copies so far by the identity of what they are of, as `copy.deepcopy` has it.
    """
    memo = {} if memo is None else memo
    if id(value) in memo or isinstance(value, nn.Module):
        return memo.get(id(value), value)
    if isinstance(value, Tensor):  # a deep copy would take along all of the memory that it is a part of
        memo[id(value)] = value.clone()
    elif type(value) is dict:
        twin: dict[Any, Any] = {}
        memo[id(value)] = twin
        twin.update({key: copied_arguments(part, memo) for key, part in value.items()})
    elif type(value) is list:
        parts: list[Any] = []
        memo[id(value)] = parts
        parts.extend(copied_arguments(part, memo) for part in value)
    elif type(value) is tuple:
        return tuple(copied_arguments(part, memo) for part in value)
    else:
        with suppress(Exception):
            return copy.deepcopy(value, memo)
        return value
    return memo[id(value)]


def cuda_devices(model: nn.Module) -> list[int]:
    """The graphics cards that parameters are on."""
    if not torch.cuda.is_initialized():
        return []
    return sorted({parameter.device.index or 0 for parameter in model.parameters() if parameter.device.type == "cuda"})


def no_hook(module: nn.Module, args: Any, output: Any) -> None:
    """A forward hook without effect: a module that carries one is called.

    torch's TransformerEncoderLayer hands the weights of its modules to one fused function, and calls the modules
    themselves only where one of them carries a hook.
    """


@contextmanager
def patched(replacements: dict[nn.Module, Any]) -> Iterator[None]:
    """Each module's `forward` replaced by a callable for the time being, also where something raises."""
    before = [(module, module.__dict__.get("forward")) for module in replacements]
    handles = [module.register_forward_hook(no_hook) for module in replacements]
    try:
        for module, forward in replacements.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, forward in before:
            _restore_forward(module, forward)


def _restore_forward(module: nn.Module, before: Any) -> None:
    if before is None:
        module.__dict__.pop("forward", None)
    else:
        module.__dict__["forward"] = before


@contextmanager
def swapped(model: nn.Module, modules: dict[str, nn.Module]) -> Iterator[None]:
    """Other modules at these paths for the time being, also where something raises."""
    before = {path: model.get_submodule(path) for path in modules}
    try:
        for path, module in modules.items():
            model.set_submodule(path, module, strict=True)
        yield
    finally:
        for path, module in before.items():
            model.set_submodule(path, module, strict=True)


def check_finite(model: nn.Module) -> None:
    """Refuse a model whose weights hold NaN or Inf.

    Raises:
        NonFiniteError: names the first tensor that does.
        WeightsError: a tensor has no values.
        SurgeryError: weights or operations that cannot be seen, see `check_usable`.
    """
    check_usable(model)
    always = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    always |= {name for name, _ in model.named_buffers() if name.rpartition(".")[2].startswith("running_")}
    for name, tensor in weights(model):
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        # A buffer may hold an infinite bound on purpose; NaN never.
        fit = torch.isfinite(tensor) if name in always else ~torch.isnan(tensor)
        if not fit.all():
            count = int((~fit).sum())
            raise NonFiniteError(
                f"the weights hold NaN or Inf: {count} of {tensor.numel()} values of '{name}'",
                "Load another checkpoint; nothing that is measured on this one would mean anything.",
            )
