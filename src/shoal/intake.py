"""Networks as they are passed in: wrappers of torch.compile are removed, copies made, unusable networks refused.

torch.compile wraps a network or parts of it; the paths and the state dict of the wrapper are not those of the network
that its factory builds. So everything is done on the network inside, and the result is not compiled.
"""

import copy
import functools
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from shoal.errors import SurgeryError, UsageError, WeightsError, kind_of

EXTRA_STATE = "_extra_state"  # how torch ends the name of what get_extra_state returned
_INSIDE = "_orig_mod"


def check_network(model: object, name: str = "model") -> None:
    """Refuse what is no network, before anything is done with it.

    Args:
        model: what was passed.
        name: of the argument.

    Raises:
        UsageError: says what it is, and how to come from there to a network.
    """
    if isinstance(model, nn.Module):
        return
    hint = "Pass the network itself."
    if isinstance(model, str):
        hint = "shoal.load_model(...).model is the network of a specification."
    elif isinstance(model, Mapping):
        hint = "Build the network, and load a state dict into it: model.load_state_dict(...)."
    elif callable(model):
        hint = "Call it, and pass the network that it returns."
    raise UsageError(f"{name} is {kind_of(model)}, expected a torch.nn.Module", hint)


def check_device(name: object) -> None:
    """Refuse what is no device, or none that torch can use here.

    Raises:
        UsageError: says why.
    """
    try:
        device = torch.device(name)  # type: ignore[call-overload]
        if device.type != "cuda":
            torch.empty(0, device=device)
        elif (device.index or 0) >= torch.cuda.device_count():  # asked, not tried: a try takes memory of the card
            raise RuntimeError(f"there are {torch.cuda.device_count()} CUDA devices")
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"the device {name!r} cannot be used: {reason}", "`shoal doctor` lists the devices."
        ) from error


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile wraps the network, or a module in it."""
    return any(
        _is_wrapper(module) or getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()
    )


def plain(model: nn.Module) -> nn.Module:
    """The network without the wrappers of torch.compile.

    It is the very module where nothing is compiled, or only the whole; where parts are compiled it is a second set of
    modules around the same tensors.
    """
    while _is_wrapper(model):
        model = model.get_submodule(_INSIDE)
    if not any(_is_wrapper(module) for module in model.modules()):
        return model
    return on_other_tensors(model, {id(tensor): tensor for tensor in held_tensors(model)})


def duplicate(model: nn.Module, parameters: Mapping[int, nn.Parameter] | None = None) -> nn.Module:
    """A deep copy without the wrappers of torch.compile; exceptions of copying are not caught.

    What the last forward with gradients left behind (the weights that the old weight_norm, spectral_norm and pruning
    compute, a feature that a module keeps) is copied by value, which copy.deepcopy refuses.

    Args:
        model: the network.
        parameters: those of the copy by the identity of the model's that they stand for; others are copied.

    Raises:
        WeightsError, SurgeryError: see `check_usable`.
    """
    check_usable(model)
    while _is_wrapper(model):
        model = model.get_submodule(_INSIDE)
    computed = [tensor for tensor in held_tensors(model) if not tensor.is_leaf]
    return on_other_tensors(
        model, {id(tensor): tensor.detach().clone() for tensor in computed} | dict(parameters or {})
    )


def check_usable(model: nn.Module) -> None:
    """Refuse a network whose weights or operations cannot be seen.

    Raises:
        WeightsError: weights that are not there yet (lazy modules), or that are no plain tensors.
        SurgeryError: TorchScript, or weights spread over processes.
    """
    for path, module in model.named_modules():
        where = f"'{path}'" if path else "the network"
        if isinstance(module, torch.jit.ScriptModule):
            raise SurgeryError(
                f"{where} is TorchScript ({type(module).__name__}), whose operations cannot be followed",
                "Give the network as it was before torch.jit.script or torch.jit.trace.",
            )
        if _is_sharded(module):
            raise SurgeryError(
                f"{where} is wrapped by FSDP, which spreads its weights over processes",
                "Build the network without FSDP and load its full state dict (--weights).",
            )
        _check_tensors(where, module)


def packed(model: nn.Module) -> list[str]:
    """The entries of the state dict that hold weights and are no plain tensors: those of quantised layers."""
    return [
        name
        for name, value in model.state_dict().items()
        if not name.endswith(EXTRA_STATE) and not isinstance(value, torch.dtype) and not _is_plain(value)
    ]


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_quantized


def _check_tensors(where: str, module: nn.Module) -> None:
    for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
        if tensor is None:
            continue
        if is_lazy(tensor):
            raise WeightsError(
                f"{where} is a {type(module).__name__} without weights: '{name}' takes its shape from the first input",
                "Run the network once on a mini-batch, model(x), before it is given to Shoal; a factory likewise.",
            )
        if tensor.layout not in (torch.strided, torch._mkldnn):  # type: ignore[attr-defined]
            raise WeightsError(
                f"{where} holds '{name}' as a sparse tensor ({tensor.layout}), which can be neither checked nor saved",
                "Keep it dense (tensor.to_dense()), or as its indices and values.",
            )
        if hasattr(tensor, "__tensor_flatten__"):
            raise WeightsError(
                f"the weight '{name}' of {where} is a {type(tensor).__name__}, whose values Shoal cannot read",
                "Compress the network before it is quantised or distributed, then do that to the result.",
            )


def _is_wrapper(module: nn.Module) -> bool:
    return type(module).__name__ == "OptimizedModule" and _INSIDE in module._modules


def _is_sharded(module: nn.Module) -> bool:
    names = {base.__name__ for base in type(module).__mro__}
    return bool(names & {"FullyShardedDataParallel", "FSDPModule"})


def on_other_tensors(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy without the wrappers of torch.compile, with other tensors; exceptions of copying are not caught.

    Args:
        model: the network.
        memo: the tensors in the copy by the identity of those that they stand for; others are copied.
    """
    # Whatever refers to a wrapper refers to the copy of what it wraps; the innermost ones first.
    for module in reversed(list(model.modules())):
        if _is_wrapper(module):
            memo[id(module)] = copy.deepcopy(module.get_submodule(_INSIDE), memo)
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        for name, item in vars(module).items():
            if name not in ("_modules", "_parameters", "_buffers"):
                vars(module)[name] = _rebound(item, memo)
    return twin


def _rebound(item: Any, copies: dict[int, Any]) -> Any:
    """The same function, but for modules and tensors around it, in whose place it sees their copies.

    copy.deepcopy hands functions on as they are: a `forward` or a hook that was written inside another function would
    still run, and write to, the network that was copied.

    Args:
        item: what an attribute of the copy holds.
        copies: by the identity of what they are copies of.
    """
    if type(item) in (dict, OrderedDict):
        for key, part in item.items():
            item[key] = _rebound(part, copies)
    elif type(item) is list:
        item[:] = [_rebound(part, copies) for part in item]
    elif isinstance(item, (nn.Module, Tensor)):
        return copies.get(id(item), item)
    elif isinstance(item, types.MethodType):
        return types.MethodType(item.__func__, copies.get(id(item.__self__), item.__self__))
    elif isinstance(item, functools.partial):
        args = [_rebound(part, copies) for part in item.args]
        return functools.partial(_rebound(item.func, copies), *args, **_rebound(item.keywords, copies))
    elif isinstance(item, types.FunctionType) and item.__closure__:
        return _with_cells(item, [_rebound_cell(cell, copies) for cell in item.__closure__])
    return item


def _rebound_cell(cell: types.CellType, copies: dict[int, Any]) -> types.CellType:
    """A cell with a copy where there is one for what it holds; else the cell itself, which others may write to."""
    try:
        held = cell.cell_contents
    except ValueError:  # a variable that is not set yet
        return cell
    if not isinstance(held, (nn.Module, Tensor, types.MethodType, types.FunctionType, functools.partial)):
        return cell
    twin = _rebound(held, copies)
    return cell if twin is held else types.CellType(twin)


def _with_cells(function: types.FunctionType, cells: list[types.CellType]) -> types.FunctionType:
    if all(cell is before for cell, before in zip(cells, function.__closure__ or (), strict=True)):
        return function
    twin = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells)
    )
    twin.__kwdefaults__, twin.__qualname__ = function.__kwdefaults__, function.__qualname__
    twin.__module__ = function.__module__
    twin.__dict__.update(function.__dict__)
    return twin


def held_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor that an attribute of a module holds."""
    for module in model.modules():
        yield from _tensors(vars(module))


def _tensors(item: Any) -> Iterator[Tensor]:
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, Mapping):
        for part in list(item.values()):
            yield from _tensors(part)
    elif isinstance(item, (tuple, list)):
        for part in item:
            yield from _tensors(part)
