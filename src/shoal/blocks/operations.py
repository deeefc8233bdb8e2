"""What Shoal knows of single torch functions, by name: which only move numbers, which are linear, which keep signs.

Names are those of `func.__name__`; a trailing underscore and the letters of an in-place operator do not matter.
"""

from typing import Any

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
