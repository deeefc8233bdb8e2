"""Every spelling of an operation in one form: its plain name and its arguments by the names of its parameters.

`x + y`, `x.add_(y)`, `torch.add(x, other=y)` and `torch.add(x, y, out=z)` are all `add(input=x, other=y, alpha=1)`.
The signatures are torch's own: of Python functions those that `inspect` sees, of built-in ones the schemas of ATen. An
operation whose arguments fit no signature has no form, and nothing may be claimed of what it computes.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.blocks.operations import plain_name
from shoal.blocks.template import Opaque, TensorRef, tensor_refs

_NUMBERS = (bool, int, float, complex)
# What names memory to reuse, but not what is computed.
_MEMORY = frozenset(["out", "inplace"])
# Other names of parameters: those of numpy, which torch takes too, and those in which torch's functions differ.
_PARAMETERS = {"self": "input", "tensor": "input", "train": "training", "split_size_or_sections": "split_size"}
_NUMPY = {"x": "input", "a": "input", "x1": "input", "x2": "other", "axis": "dim", "keepdims": "keepdim"}
# Methods that are no operation of ATen or take arguments in ways that no schema has.
_BY_HAND = {"getitem": ("input", "index"), "setitem": ("input", "index", "value")}
_CASTS = frozenset("to type type_as float half bfloat16 double cpu cuda T mT H mH data real imag".split())


@dataclass(frozen=True)
class OpSignature:
    """What an operation computes: its plain name and its arguments by parameter, with the defaults."""

    name: str
    arguments: Mapping[str, Any]

    def get(self, parameter: str, default: Any = None) -> Any:
        """The argument of a parameter."""
        return self.arguments.get(parameter, default)

    def tensor(self, parameter: str) -> int | None:
        """The value that is the argument of a parameter, None where it is no tensor."""
        item = self.arguments.get(parameter)
        return item.value if isinstance(item, TensorRef) else None

    @property
    def inputs(self) -> list[int]:
        """The values that decide what is computed; a tensor that is only written into is none of them."""
        return tensor_refs(dict(self.arguments))


def bind(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> OpSignature | None:
    """An operation in its one form, or None where no signature of torch fits.

    Args:
        func: the function as torch dispatched it.
        args: the template of its positional arguments.
        kwargs: the template of its keyword arguments.
    """
    name = known_name(func)
    if name is None:
        return None
    kwargs = {key: item for key, item in kwargs.items() if key not in _MEMORY}
    plain = plain_name(name)
    bound = _bound(func, name, plain, args, kwargs)
    if bound is None:
        return None
    named = {_PARAMETERS.get(key, key): item for key, item in bound.items()}
    return OpSignature(plain, {key: item for key, item in named.items() if key not in _MEMORY and key[:1] != "_"})


@lru_cache(maxsize=4096)
def known_name(func: Any) -> str | None:
    """The name of a function of torch's own; None for anybody else's, whatever it is called."""
    if isinstance(func, torch._ops.OpOverload):
        return func._schema.name.removeprefix("aten::") if func.namespace == "aten" else None
    if isinstance(func, torch._ops.OpOverloadPacket):
        return func._qualified_op_name.removeprefix("aten::") if func._qualified_op_name[:6] == "aten::" else None
    name = getattr(func, "__name__", "")
    if name in ("__get__", "__set__"):
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        real = getattr(getattr(Tensor, attribute, None), name, None)
        return (attribute if name == "__get__" else f"{attribute}.__set__") if real == func else None
    code = getattr(func, "__code__", None)
    if code is not None:
        return name if Path(code.co_filename).is_relative_to(_torch_folder()) else None
    return name if any(getattr(place, name, None) is func for place in _places()) else None


@cache
def _torch_folder() -> Path:
    return Path(torch.__file__).parent


@cache
def _places() -> tuple[Any, ...]:
    return (
        Tensor,
        torch,
        torch.nn.functional,
        torch._C._nn,
        torch._C._VariableFunctions,
        torch.special,
        torch.linalg,
        torch.fft,
    )


def _bound(func: Any, name: str, plain: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    if plain in _BY_HAND:
        names = _BY_HAND[plain]
        return dict(zip(names, args, strict=True)) if len(args) == len(names) and not kwargs else None
    if plain in _CASTS and not isinstance(func, torch._ops.OpOverload):
        return {"input": args[0], "rest": (args[1:], dict(kwargs))} if args else None
    python = _python_signature(func)
    if python is not None:
        try:
            bound = python.bind(*args, **kwargs)
        except TypeError:
            return None
        bound.apply_defaults()
        return dict(bound.arguments)
    kwargs = {key: item for key, item in kwargs.items() if key != "return_indices" or item}
    schemas = [func._schema] if isinstance(func, torch._ops.OpOverload) else _schemas(name, plain)
    for number_as_tensor in (False, True):  # x.max(1) is an axis before it is a number to compare with
        for schema in schemas:
            found = _by_schema(schema.arguments, args, kwargs, number_as_tensor)
            if found is not None:
                return found
    return None


@lru_cache(maxsize=1024)
def _python_signature(func: Any) -> inspect.Signature | None:
    if not inspect.isfunction(func):
        return None
    signature = inspect.signature(func, follow_wrapped=False)
    wild = [one for one in signature.parameters.values() if one.kind is inspect.Parameter.VAR_KEYWORD]
    return None if wild else signature


@cache
def _schemas(name: str, plain: str) -> tuple[Any, ...]:
    """The schemas of ATen under a name, else under the name without what says that it works in place."""
    for spelled in (name, name.rstrip("_"), name.strip("_"), plain):
        packet = getattr(torch.ops.aten, spelled, None)
        if isinstance(packet, torch._ops.OpOverloadPacket):
            found = (getattr(packet, overload)._schema for overload in packet.overloads() if "out" not in overload)
            return tuple(schema for schema in found if any("Tensor" in str(one.type) for one in schema.returns))
    return ()


def _by_schema(
    parameters: list[Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], number_as_tensor: bool
) -> dict[str, Any] | None:
    """The arguments under the names of a schema, or None where they do not fit it."""
    positional = [one for one in parameters if not one.kwarg_only]
    args = _gathered(positional, args)
    if len(args) > len(positional):
        return None
    bound = {one.name: item for one, item in zip(positional, args, strict=False)}
    names = {"input": "self"} if parameters and parameters[0].name == "self" else {}
    known = {one.name for one in parameters}
    for key, item in kwargs.items():
        key = key if key in known else _NUMPY.get(key, key)
        key = names.get(key, key)
        if key not in known or key in bound:
            return None
        bound[key] = item
    for one in parameters:
        # Functions of Python hand on None where a schema has an empty list.
        absent = bound.get(one.name) is None and not str(one.type).startswith("Optional")
        if one.name not in bound or (absent and one.has_default_value()):
            if not one.has_default_value():
                return None
            bound[one.name] = one.default_value
        elif not _fits(str(one.type), bound[one.name]) and not (
            number_as_tensor and str(one.type) == "Tensor" and isinstance(bound[one.name], _NUMBERS)
        ):
            return None
    return bound


def _gathered(positional: list[Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with the sizes of `x.view(2, 3)` in one: `x.view((2, 3))`."""
    for place, one in enumerate(positional[:2]):
        rest = args[place:]
        if str(one.type) == "List[int]" and rest and all(type(item) is int for item in rest):
            return (*args[:place], list(rest)) if len(positional) == place + 1 else args
    return args


def _fits(kind: str, item: Any) -> bool:
    """Whether an argument can stand for a parameter of this type; numbers are not told apart."""
    if isinstance(item, Opaque):
        return False
    if kind.startswith("Optional["):
        return item is None or _fits(kind[9:-1], item)
    if kind.startswith("List["):
        if isinstance(item, (tuple, list)):
            return all(_fits(kind[5:-1], part) for part in item)
        return "Tensor" not in kind and isinstance(item, _NUMBERS)  # one number for all axes
    if kind == "Tensor":
        return isinstance(item, TensorRef)
    if kind in ("number", "int", "float", "bool", "Scalar", "complex"):
        return isinstance(item, (*_NUMBERS, torch.dtype, torch.memory_format, torch.layout))
    return not isinstance(item, TensorRef)


def parts_of(item: Any) -> Iterator[Any]:
    """An argument, or the parts of one that is a list."""
    if isinstance(item, (tuple, list)):
        yield from item
    else:
        yield item
