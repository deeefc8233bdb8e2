"""The cost of a network: parameters, bytes, and multiply-adds, counted by torch at the dispatcher.

1 MAC = one multiply-add; torch counts FLOPs = 2 MACs. Operators without a formula are named instead of
counted as zero.
"""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from shoal import record
from shoal.batches import Batch, call, device_of
from shoal.errors import DataError
from shoal.preserve import evaluating

aten = torch.ops.aten

# A few operations per value, next to the hundreds of a convolution or a matrix product. torch marks
# elementwise operators and most reductions itself; these are the rest. What matches nothing here counts as
# possibly expensive.
_CHEAP = re.compile(
    r"""
    _?(native_|cudnn_|miopen_|fused_)?(batch|layer|group|instance|rms)_norm\w* | _weight_norm_interface
    | _?(log_|safe_|masked_)?softmax | _?log(cum)?sum\w*exp | glu | _prelu_kernel | rrelu_\w+ | log_sigmoid\w*
    | (hard(swish|tanh|sigmoid|shrink)|mish)_? | native_dropout
    | _?(mkldnn_|fractional_)?(adaptive_)?(max|avg)_(un)?pool[123]d\w*
    | (_?upsample|grid_sampler|affine_grid)_\w+
    | (nan)?(sum|mean|median) | prod | aminmax | (arg)?(max|min) | any | all | (var|std)(_mean)? | norm | mode
    | linalg_vector_norm | renorm | dist | trace | cum(sum|prod|max|min) | count_nonzero | linalg_cross
    | (arg)?sort | topk | kthvalue | searchsorted | bucketize | _?unique\w* | bincount | histc
    | nonzero\w* | isin | equal | is_nonzero | item | _local_scalar_dense
    | polar | complex | rsub | floor_divide
    | embedding | _embedding_bag\w* | embedding_renorm_ | _?index(_\w+)? | gather | _?scatter\w*
    | \w+_scatter | masked_(select|fill_|scatter_?) | take | put | tri[lu]\w*
    | _?cat | _?stack | clone | copy_? | _to_copy | lift_fresh\w* | contiguous | repeat\w* | tile
    | roll | flip | rot90 | (constant|reflection|replication)_pad\w* | im2col | col2im | unfold | \w*shuffle
    | block_diag
    | as_strided_ | (un)?squeeze_ | transpose_ | t_ | detach_ | _unsafe_view | _reshape_\w+ | set_ | resize\w*
    | \w+_copy | view_as_\w+
    | (new_)?(empty|zeros|ones|full)\w* | fill_? | zero_? | arange | linspace | logspace | eye | scalar_tensor
    | rand\w* | bernoulli_? | normal\w* | uniform_? | multinomial
    """,
    re.VERBOSE,
)
_CHEAP_TAGS = [getattr(torch.Tag, name) for name in ("pointwise", "reduction") if hasattr(torch.Tag, name)]


def cost(model: nn.Module, batch: Batch) -> record.NetworkCost:
    """Parameters, bytes of the weights, and MACs of one sample, in eval mode; the model comes back as it was.

    `params` and `weights_bytes` count a tensor shared by several modules once; the bytes include buffers.
    `input_shape` is that of the first input, without the batch axis. Attention counts as its two full matrix
    products, also where it is causal, and whichever kernel computes it.

    Args:
        model: any module.
        batch: an input for it; the first sample serves.

    Returns:
        `not_counted` names the operators that compute, have no formula and are not cheap (elementwise, views,
        reductions, normalisation, pooling): with these, the true number is larger than `macs`.

    Raises:
        DataError: the batch holds no sample.
        ModelRaisedError: the model raised.
    """
    flops, seen = _count(model, batch)
    return record.NetworkCost(
        params=_params(model),
        macs=flops.get_total_flops() // 2,
        not_counted=seen.unknown(flops),
        weights_bytes=_weights_bytes(model),
        input_shape=list(batch.tensors[0].shape[1:]),
    )


def macs_by_module(model: nn.Module, batch: Batch) -> dict[str, int]:
    """MACs of one sample inside every module, children included; "" is the whole model.

    Args:
        model: any module.
        batch: an input for it; the first sample serves.

    Returns:
        One entry for each path of `model.named_modules()`, 0 where nothing was counted. A module that is used
        twice has both uses in one entry. Arithmetic that calls no module belongs to the module whose
        `forward` does it.

    Raises:
        DataError: the batch holds no sample.
        ModelRaisedError: the model raised.
    """
    flops, _ = _count(model, batch)
    counts = {name: sum(by_operator.values()) // 2 for name, by_operator in flops.get_flop_counts().items()}
    root = type(model).__name__
    macs = dict.fromkeys((path for path, _ in model.named_modules()), 0)
    first = {id(module): path for path, module in reversed(list(model.named_modules()))}
    # torch files a module with several paths under one of them, not always the one named_modules() gives.
    for path, module in model.named_modules(remove_duplicate=False):
        if path:
            macs[first[id(module)]] = max(macs[first[id(module)]], counts.get(f"{root}.{path}", 0))
    macs[""] = counts.get("Global", 0)
    return macs


def _count(model: nn.Module, batch: Batch) -> tuple[FlopCounterMode, "_Seen"]:
    if not batch.tensors or batch.size == 0:
        raise DataError("a batch without samples", "Give at least one sample to count with.")
    sample = batch.take(1).to(device_of(model))
    flops = FlopCounterMode(display=False, custom_mapping=_formulas())
    seen = _Seen()
    # `seen` is outside: it gets the operators that torch's counter has taken apart and can take apart no
    # further.
    with evaluating(model), _slow_path(), seen, flops:
        call(model, sample)
    return flops, seen


@contextmanager
def _slow_path() -> Iterator[None]:
    """Without the fused kernels of nn.MultiheadAttention and nn.TransformerEncoderLayer."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Seen(TorchDispatchMode):
    """Remembers the operators that might be expensive."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.operators: dict[str, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not _is_cheap(func) and any(map(_is_number, tree_leaves((args, kwargs, out)))):
            packet = getattr(func, "_overloadpacket", func)
            self.operators[str(packet)] = packet
        return out

    def unknown(self, flops: FlopCounterMode) -> list[str]:
        """The names of those that `flops` has no formula for, sorted."""
        return sorted(name for name, packet in self.operators.items() if packet not in flops.flop_registry)


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex() or value.is_quantized)


def _is_cheap(func: Any) -> bool:
    if not isinstance(func, torch._ops.OpOverload):
        return False
    if func.is_view or any(tag in func.tags for tag in _CHEAP_TAGS):
        return True
    name = func._overloadpacket.__name__
    return func.namespace in ("aten", "prim", "prims") and _CHEAP.fullmatch(name) is not None


def _formulas() -> dict[Any, Callable[..., int]]:
    """FLOPs from shapes for operators that torch does not count, or did not in older versions."""
    attention = (
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
        "_scaled_dot_product_attention_math_for_mps",
    )
    named: dict[str, Callable[..., int]] = dict.fromkeys(attention, _attention_flops)
    named |= {
        "_int_mm": _mm_flops,
        "mv": _mm_flops,
        "dot": _mm_flops,
        "vdot": _mm_flops,
        "addmv": _addmv_flops,
    }
    return {getattr(aten, name): formula for name, formula in named.items() if hasattr(aten, name)}


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Scores and weighted values, for shapes (..., heads, tokens, features); key heads may be fewer."""
    *lead, queries, width = query
    return int(2 * math.prod(lead) * queries * key[-2] * (width + value[-1]))


def _mm_flops(left_shape: Any, right_shape: Any, *_: Any, **__: Any) -> int:
    return int(2 * math.prod(left_shape) * (right_shape[1] if len(right_shape) > 1 else 1))


def _addmv_flops(_: Any, matrix: Any, *__: Any, **___: Any) -> int:
    return int(2 * math.prod(matrix))


def _params(model: nn.Module) -> int:
    return sum(tensor.numel() for tensor in _distinct(model.parameters()))


def _weights_bytes(model: nn.Module) -> int:
    tensors = [value for value in model.state_dict().values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in _distinct(tensors))


def _distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Each piece of memory once, also where tied tensors share it."""
    by_memory: dict[Any, Tensor] = {}
    for tensor in tensors:
        address = tensor.data_ptr()
        # Meta tensors and empty ones have no address; they are told apart by identity.
        key = (str(tensor.device), address, tensor.numel(), tensor.dtype) if address else id(tensor)
        by_memory.setdefault(key, tensor)
    return list(by_memory.values())
