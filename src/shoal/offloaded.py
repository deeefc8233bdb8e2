"""Weights that are not in memory: accelerate's offload leaves them on a disk and reads each module's as it is called.

Between two calls such parameters stand on torch's `meta` device, without values. What looks at weights asks here, so
that they are read one at a time, and a network larger than memory can be scanned and fitted.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import WeightsError


def is_offloaded(model: nn.Module) -> bool:
    """Whether some of the weights are on a disk (or nowhere)."""
    return any(parameter.is_meta for parameter in model.parameters())


def weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the state dict with its name; one that is on a disk is read when its turn comes, and not kept.

    Raises:
        WeightsError: a tensor has no values anywhere.
    """
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            yield name, real(model, name, tensor)


def real(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A tensor of the model by its name, read from the disk if that is where its values are.

    Raises:
        WeightsError: it has no values anywhere.
    """
    return _read(model, name) if tensor.is_meta else tensor


def where_it_runs(model: nn.Module) -> torch.device | None:
    """The device that offloaded modules compute on; None where no module is offloaded."""
    for module in model.modules():
        for hook in _hooks(module):
            if getattr(hook, "execution_device", None) is not None:
                device = hook.execution_device
                return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    return None


@contextmanager
def loading_unwatched(model: nn.Module) -> Iterator[None]:
    """What a hook does to bring weights in and out is hidden from torch function modes for the time being."""
    hooks = [hook for module in model.modules() for hook in _hooks(module)]
    try:
        for hook in hooks:
            for name in ("pre_forward", "post_forward"):
                vars(hook)[name] = _unwatched(getattr(hook, name))
        yield
    finally:
        for hook in hooks:
            for name in ("pre_forward", "post_forward"):
                vars(hook).pop(name, None)


def _unwatched(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():
            return function(*args, **kwargs)

    return run


@contextmanager
def with_tensor(module: nn.Module, name: str, value: Tensor) -> Iterator[None]:
    """A parameter of a module has other values for the time being; the parameter itself is never written to.

    An offloaded module reads its weights anew at each call, so there the place they are read from gives the value.
    """
    hook = next(
        (candidate for candidate in _hooks(module) if name in (getattr(candidate, "weights_map", None) or ())), None
    )
    if hook is not None and getattr(module, name).is_meta:
        before, hook.weights_map = hook.weights_map, _Instead(hook.weights_map, name, value)
        try:
            yield
        finally:
            hook.weights_map = before
        return
    if getattr(module, name).is_meta:
        raise WeightsError(
            f"'{name}' of a {type(module).__name__} is on a disk and is read together with the modules around it",
            "Offload every module by itself, as accelerate does by default.",
        )
    if name not in module._parameters:
        with _computed_as(module, name, value):
            yield
        return
    kept = module._parameters[name]
    try:
        module._parameters[name] = nn.Parameter(value, requires_grad=False)
        yield
    finally:
        module._parameters[name] = kept


@contextmanager
def _computed_as(module: nn.Module, name: str, value: Tensor) -> Iterator[None]:
    """A tensor that a module computes from parameters, as weight norm and spectral norm do, is this one instead.

    A property of the class comes before a tensor of the module itself, and before what a hook assigns at each call.
    """
    kind = type(module)
    instead = property(lambda _: value, lambda _, computed: None)
    try:
        object.__setattr__(module, "__class__", type(kind.__name__, (kind,), {name: instead}))
        yield
    finally:
        object.__setattr__(module, "__class__", kind)


class _Instead(Mapping[str, Tensor]):
    """Another mapping, but for one of its values."""

    def __init__(self, rest: Mapping[str, Tensor], name: str, value: Tensor) -> None:
        self.rest, self.name, self.value = rest, name, value

    def __getitem__(self, key: str) -> Tensor:
        return self.value if key == self.name else self.rest[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rest)

    def __len__(self) -> int:
        return len(self.rest)


def _hooks(module: nn.Module) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))


def _read(model: nn.Module, name: str) -> Tensor:
    """The values of a tensor on a disk, from the hook of its module or of one around it."""
    parts = name.split(".")
    for count in range(len(parts) - 1, -1, -1):
        local_name = ".".join(parts[count:])
        for hook in _hooks(model.get_submodule(".".join(parts[:count]))):
            try:
                value: Tensor | None = (getattr(hook, "weights_map", None) or {})[local_name]
            except KeyError:
                continue
            if value is not None:
                return value
    raise WeightsError(
        f"'{name}' has no values: it is on torch's 'meta' device, and there is no record of where they are",
        "Load the weights, or offload them with accelerate (docs/large-networks.md).",
    )
