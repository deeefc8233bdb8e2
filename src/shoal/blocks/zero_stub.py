"""What stands where a module of a removed branch was: it computes nothing and returns zeros."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal.blocks.template import Opaque, TensorRef, substitute, tensor_refs
from shoal.blocks.trace import ModuleCall, Trace
from shoal.errors import SurgeryError


@dataclass(frozen=True)
class _Shape:
    """The shape of an output: that of an argument, but for one axis at most."""

    argument: int | str
    axis: int | None
    size: int
    dtype: torch.dtype


class ZeroStub(nn.Module):
    """Takes the arguments of the module it stands for and returns zeros in the shape of what that returned.

    The zeros take no memory (one number, expanded), unless `writable`. What nobody reads is None.

    Args:
        run: the run in which the module was called.
        call: its one call.
        writable: whether somebody may change what it returns in place.

    Raises:
        SurgeryError: the shape it returned does not follow from that of an argument.
    """

    def __init__(self, run: Trace, call: ModuleCall, *, writable: bool) -> None:
        super().__init__()
        read = {
            value for value in tensor_refs(call.output) if any(op >= call.stop for op in run.readers.get(value, []))
        }
        self._output, self._writable = _only(call.output, read), writable
        self._shapes = {value: _shape_of(run, call, value) for value in sorted(read)}
        for name, value in vars(call.module).items():  # plain attributes that the network's code may ask for
            if not name.startswith("_") and name not in self.__dict__ and isinstance(value, (int, float, str)):
                self.__dict__[name] = value
        for name, _ in call.module.named_parameters(recurse=False):
            self.register_parameter(name, None)
        # torch's TransformerEncoderLayer hands the weights of its modules to one fused function, and calls the modules
        # themselves only where one of them carries a hook.
        self.register_forward_hook(_no_hook)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros, in the containers the module returned its results in."""
        return substitute(self._output, {value: self._zeros(one, args, kwargs) for value, one in self._shapes.items()})

    def _zeros(self, one: _Shape, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        given: Tensor = args[one.argument] if isinstance(one.argument, int) else kwargs[one.argument]
        shape = list(given.shape)
        if one.axis is not None:
            shape[one.axis] = one.size
        dtype = given.dtype if given.is_floating_point() else one.dtype
        if self._writable:
            return torch.zeros(shape, dtype=dtype, device=given.device)
        return torch.zeros((), dtype=dtype, device=given.device).expand(shape)


def _no_hook(module: nn.Module, args: Any, output: Any) -> None:
    """Nothing."""


def _only(item: Any, wanted: set[int]) -> Any:
    """A template with None for every tensor but these, and for what no template can hold."""
    if isinstance(item, TensorRef):
        return item if item.value in wanted else None
    if isinstance(item, Opaque):
        return None
    if isinstance(item, Mapping):
        return {key: _only(value, wanted) for key, value in item.items()}
    if isinstance(item, (tuple, list)):
        return type(item)(_only(value, wanted) for value in item)
    return item


def _shape_of(run: Trace, call: ModuleCall, value: int) -> _Shape:
    made = run.values[value]
    given: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    tensors = [(key, run.values[one.value]) for key, one in given if isinstance(one, TensorRef)]
    tensors.sort(key=lambda pair: pair[1].dtype != made.dtype)  # a mask of the same shape is not what is worked on
    for key, one in tensors:
        if one.shape == made.shape:
            return _Shape(key, None, 0, made.dtype)
    for key, one in tensors:
        axes = [axis for axis, (a, b) in enumerate(zip(one.shape, made.shape, strict=False)) if a != b]
        # Features stand on the last axis, or behind the batch in an image; other axes are as long as the input is.
        features = {len(made.shape) - 1, 1 if len(made.shape) == 4 else -1}
        if len(one.shape) == len(made.shape) >= 2 and len(axes) == 1 and axes[0] in features:
            return _Shape(key, axes[0], made.shape[axes[0]], made.dtype)
    raise SurgeryError(f"the shape of what '{call.path}' returns does not follow from what it is given")
