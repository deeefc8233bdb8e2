"""Torch functions: what Shoal knows of each by name, and every spelling of a call in one form.

`x + y`, `x.add_(y)`, `torch.add(x, other=y)` and `torch.add(x, y, out=z)` are all `add(input=x, other=y, alpha=1)`.
The signatures are torch's own: of Python functions those that `inspect` sees, of built-in ones the schemas of ATen. A
call whose arguments match no signature has no such form, and nothing may be claimed about what it computes.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.blocks.template import Opaque, TensorRef, tensor_refs

_ALIASES = {
    "iadd": "add",
    "radd": "add",
    "imul": "mul",
    "rmul": "mul",
    "isub": "sub",
    "itruediv": "div",
    "truediv": "div",
    "true_divide": "div",
    "concat": "cat",
    "concatenate": "cat",
    "multiply": "mul",
    "subtract": "sub",
    "divide": "div",
    "absolute": "abs",
    "negative": "neg",
    "clip": "clamp",
    "_threshold": "threshold",
}

# Operations without parameters that carry a shortcut across a change of shape.
STRUCTURE = frozenset(
    """
    getitem pad view reshape flatten unflatten permute transpose swapaxes squeeze unsqueeze contiguous clone
    to type_as type float half bfloat16 double detach cat concat concatenate avg_pool1d avg_pool2d
    avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d max_pool1d max_pool2d dropout dropout1d dropout2d
    feature_dropout narrow select chunk split tensor_split roll interpolate upsample movedim
    expand channel_shuffle pixel_unshuffle pixel_shuffle view_as reshape_as alias unbind T mT
    """.split()
)

# Linear maps and normalisations: a projection shortcut may pass through them.
LINEAR = frozenset(
    """
    conv1d conv2d conv3d linear batch_norm group_norm layer_norm instance_norm rms_norm matmul bmm addmm
    baddbmm conv_transpose1d conv_transpose2d
    """.split()
)

# Results that are never negative, whatever comes in.
NON_NEGATIVE = frozenset(
    """
    relu relu6 sigmoid softmax softplus hardsigmoid abs square exp sqrt
    """.split()
)

# Functions whose result is not negative where no input is; padding must be with zeros.
KEEPS_SIGN = STRUCTURE | {"add", "mul", "lp_pool2d", "mean", "sum", "amax", "max"}

# Functions that return their input unchanged in eval mode.
DROPOUT = frozenset(
    """
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout
    """.split()
)


@lru_cache(maxsize=4096)
def plain_name(name: str) -> str:
    """The name of what a function computes: `add` for `__iadd__`, `add_`, `__radd__`; `relu` for `relu_`."""
    core = name.strip("_") if name.startswith("__") else name.rstrip("_")
    return _ALIASES.get(core, core)


def without_in_place(func: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The out-of-place form of a torch function and its keyword arguments.

    A function kept from a network is replayed on tensors that others may still read.
    """
    import torch

    name = getattr(func, "__name__", "")
    if kwargs.get("inplace"):
        kwargs = {**kwargs, "inplace": False}
    if "out" in kwargs:
        kwargs = {key: item for key, item in kwargs.items() if key != "out"}
    if not in_place(func):
        return func, kwargs
    if name.startswith("__i"):
        return getattr(torch.Tensor, "__" + name[3:]), kwargs
    plain = getattr(torch.Tensor, name[:-1], None) or getattr(torch, name[:-1], None)
    return (plain or func), kwargs


def in_place(func: Any) -> bool:
    """Whether a torch function is one that writes into its first argument, by its name."""
    name = getattr(func, "__name__", "")
    if name.startswith("__i"):
        return name not in ("__invert__", "__index__", "__int__")
    return name.endswith("_") and not name.endswith("__")


_NUMBERS = (bool, int, float, complex)
# What names memory to reuse, but not what is computed.
_MEMORY = frozenset(["out", "inplace"])
# Other names of parameters: those of numpy, which torch takes too, and those in which torch's functions differ.
_PARAMETERS = {"self": "input", "tensor": "input", "train": "training", "split_size_or_sections": "split_size"}
_NUMPY = {"x": "input", "a": "input", "x1": "input", "x2": "other", "axis": "dim", "keepdims": "keepdim"}
# Methods that are no operation of ATen or take arguments in ways that no schema has.
_HAND_WRITTEN = {"getitem": ("input", "index"), "setitem": ("input", "index", "value")}
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
    """The call in its one form, or None where no signature of torch matches.

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
    """The name of one of torch's own functions; None for any other, whatever it is called."""
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
    return name if any(getattr(place, name, None) is func for place in _torch_namespaces()) else None


@cache
def _torch_folder() -> Path:
    return Path(torch.__file__).parent


@cache
def _torch_namespaces() -> tuple[Any, ...]:
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
    if plain in _HAND_WRITTEN:
        names = _HAND_WRITTEN[plain]
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
            arguments = _by_schema(schema.arguments, args, kwargs, number_as_tensor)
            if arguments is not None:
                return arguments
    return None


@lru_cache(maxsize=1024)
def _python_signature(func: Any) -> inspect.Signature | None:
    if not inspect.isfunction(func):
        return None
    signature = inspect.signature(func, follow_wrapped=False)
    wild = [parameter for parameter in signature.parameters.values() if parameter.kind is inspect.Parameter.VAR_KEYWORD]
    return None if wild else signature


@cache
def _schemas(name: str, plain: str) -> tuple[Any, ...]:
    """The schemas of ATen under a name, else under its out-of-place name."""
    for spelled in (name, name.rstrip("_"), name.strip("_"), plain):
        packet = getattr(torch.ops.aten, spelled, None)
        if isinstance(packet, torch._ops.OpOverloadPacket):
            schemas = (getattr(packet, overload)._schema for overload in packet.overloads() if "out" not in overload)
            return tuple(
                schema for schema in schemas if any("Tensor" in str(returned.type) for returned in schema.returns)
            )
    return ()


def _by_schema(
    parameters: list[Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], number_as_tensor: bool
) -> dict[str, Any] | None:
    """The arguments by the parameter names of a schema, or None where they do not match it."""
    positional = [parameter for parameter in parameters if not parameter.kwarg_only]
    args = _collect_sizes(positional, args)
    if len(args) > len(positional):
        return None
    bound = {parameter.name: item for parameter, item in zip(positional, args, strict=False)}
    names = {"input": "self"} if parameters and parameters[0].name == "self" else {}
    names_of_schema = {parameter.name for parameter in parameters}
    for key, item in kwargs.items():
        key = key if key in names_of_schema else _NUMPY.get(key, key)
        key = names.get(key, key)
        if key not in names_of_schema or key in bound:
            return None
        bound[key] = item
    for parameter in parameters:
        # Functions of Python pass None on where a schema has an empty list.
        absent = bound.get(parameter.name) is None and not str(parameter.type).startswith("Optional")
        if parameter.name not in bound or (absent and parameter.has_default_value()):
            if not parameter.has_default_value():
                return None
            bound[parameter.name] = parameter.default_value
        elif not _fits(str(parameter.type), bound[parameter.name]) and not (
            number_as_tensor and str(parameter.type) == "Tensor" and isinstance(bound[parameter.name], _NUMBERS)
        ):
            return None
    return bound


def _collect_sizes(positional: list[Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with separate sizes, as in `x.view(2, 3)`, collected: `x.view((2, 3))`."""
    for place, parameter in enumerate(positional[:2]):
        rest = args[place:]
        if str(parameter.type) == "List[int]" and rest and all(type(item) is int for item in rest):
            return (*args[:place], list(rest)) if len(positional) == place + 1 else args
    return args


def _fits(kind: str, item: Any) -> bool:
    """Whether an argument matches a parameter of this type; kinds of numbers are not distinguished."""
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
