"""Zero analysis: which values of a run are zero for every input, the proof that a branch is statically zero.

Abstract interpretation over the traced operations with one property, "every element is 0 for every finite input", read
off the weights: a last convolution without weight and bias, a batch norm with gamma = beta = 0, a LayerScale of 0.
Each rule names the arguments that have to be zero; of an operation without a signature nothing is claimed.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from shoal.blocks.operations import STRUCTURE, OpSignature, parts_of
from shoal.blocks.template import TensorRef, leaves
from shoal.blocks.trace import OpRecord, Trace
from shoal.offloaded import real

# Element by element: whether f(0) = 0 is found by trying.
_ELEMENTWISE = frozenset(
    """
    relu relu6 gelu silu tanh hardswish leaky_relu elu celu selu mish neg abs sin sqrt square softsign tanhshrink
    hardshrink softshrink hardtanh clamp clamp_min clamp_max threshold sign asin atan sinh expm1 log1p erf pow
    """.split()
)
# Sums and means, and what moves numbers but carries no shortcut.
_REARRANGED = frozenset("sum mean cumsum stack flip repeat tile repeat_interleave index_select gather".split())
_MAPS = frozenset("conv1d conv2d conv3d linear conv_transpose1d conv_transpose2d conv_transpose3d".split())
_NORMS = frozenset(["layer_norm", "group_norm", "rms_norm", "batch_norm", "instance_norm"])
# The two factors of a product, by parameter.
_PRODUCTS = {
    "mul": ("input", "other"),
    "matmul": ("input", "other"),
    "bmm": ("input", "mat2"),
    "mm": ("input", "mat2"),
    "mv": ("input", "vec"),
    "dot": ("input", "other"),
    "outer": ("input", "vec2"),
}
# A product that is added to something: what is added, and the two factors.
_FUSED = {
    "addmm": ("input", "mat1", "mat2"),
    "addmv": ("input", "mat", "vec"),
    "addbmm": ("input", "batch1", "batch2"),
    "baddbmm": ("input", "batch1", "batch2"),
    "addcmul": ("input", "tensor1", "tensor2"),
}
# Zero where all of these are: sums, choices, what is put into something.
_TOGETHER = {
    "add": ("input", "other"),
    "sub": ("input", "other"),
    "rsub": ("input", "other"),
    "lerp": ("input", "end"),
    "where": ("input", "other"),
    "masked_fill": ("input", "value"),
    "index_add": ("input", "source"),
    "scatter_add": ("input", "src"),
    "maximum": ("input", "other"),
    "minimum": ("input", "other"),
    "copy": ("src",),
    "fill": ("value",),
    "full": ("fill_value",),
    "full_like": ("fill_value",),
    "new_full": ("fill_value",),
}
# Finite whatever comes in: attention masks of -inf end here.
_FINITE = frozenset("softmax sigmoid tanh scaled_dot_product_attention multi_head_attention_forward relu6".split())
_ZEROS = frozenset(["zero", "zeros", "zeros_like", "new_zeros"])


def zero_values(trace: Trace, model: nn.Module | None) -> dict[int, str]:
    """The values that are zero for every finite input, each with the reason.

    Args:
        trace: a run of `model`.
        model: holds the weights the proof reads; None to go by the operations alone.
    """
    proof = ZeroProof(trace, model)
    for op in trace.ops:
        proof.note_infinite(op)
        reason = proof.why_zero(op)
        if reason is not None:
            proof.zeros.update(dict.fromkeys(_results(op), reason))
    return proof.zeros


def _results(op: OpRecord) -> list[int]:
    """What an operation returned and made; of one that returns several tensors only parts of its input are alike."""
    if op.value is not None:
        return [op.value]
    several = op.signature is not None and op.signature.name in STRUCTURE and not op.changed
    if several:
        return op.outputs
    first = op.result[0] if isinstance(op.result, tuple) and op.result else None
    return [first.value] if isinstance(first, TensorRef) and first.value in op.outputs else []


class ZeroProof:
    """The values known to be zero so far, and the weights."""

    def __init__(self, trace: Trace, model: nn.Module | None) -> None:
        self.trace, self.model = trace, model
        self.named: dict[str, Tensor] = {}
        if model is not None:
            self.named = dict(model.named_parameters()) | dict(model.named_buffers())
        self.zeros: dict[int, str] = {}
        self.infinite: set[int] = set()  # values that may hold an infinite number that the code itself put in
        for value in trace.values:
            tensor = self._tensor(value.index)
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                self.infinite.add(value.index)
            if tensor is not None and tensor.numel() > 0 and not bool(torch.count_nonzero(tensor)):
                self.zeros[value.index] = f"'{value.name}' is zero" if value.name else "a constant is zero"

    def _tensor(self, value: int) -> Tensor | None:
        """The numbers of a weight or constant; None for what is computed, or changes as the network runs."""
        info = self.trace.values[value]
        if info.origin == "constant" and self.model is not None:
            return self.trace.constants[value]
        constant = info.origin in ("parameter", "buffer") and info.name not in self.trace.written
        tensor = self.named.get(info.name) if constant else None
        return real(self.model, info.name, tensor) if tensor is not None and self.model is not None else None

    def note_infinite(self, op: OpRecord) -> None:
        """Follow infinite numbers of the code and of buffers: zero times infinity is not zero."""
        numbers = (item for item in leaves((op.args, op.kwargs)) if isinstance(item, float))
        held = any(value in self.infinite for value in op.inputs) or not all(map(isfinite, numbers))
        if held and (op.signature is None or op.signature.name not in _FINITE):
            self.infinite.update(op.outputs)

    def why_zero(self, op: OpRecord) -> str | None:
        """Why what an operation returns is zero, or None."""
        signature = op.signature
        if signature is None:
            return None
        name = signature.name
        for names, rule in _RULES:
            if name in names:
                return rule(self, signature, op)
        return None

    def zero(self, item: object) -> str | None:
        """Why an argument is zero, or None."""
        if isinstance(item, TensorRef):
            return self.zeros.get(item.value)
        return "a number is zero" if isinstance(item, (int, float, complex)) and item == 0 else None

    def every(self, items: Iterable[object]) -> str | None:
        """The first reason, if every argument is zero."""
        reasons = [self.zero(item) for item in items]
        return reasons[0] if reasons and all(reason is not None for reason in reasons) else None

    def product(self, first: object, second: object) -> str | None:
        """Why a product is zero: one factor is, and the other is not known to be infinite."""
        for factor, partner in ((first, second), (second, first)):
            reason = self.zero(factor)
            if reason is not None and self._finite(partner):
                return reason
        return None

    def _finite(self, item: object) -> bool:
        if isinstance(item, (int, float)):
            return isfinite(item)
        return not isinstance(item, TensorRef) or item.value not in self.infinite

    def of_product(self, signature: OpSignature, op: OpRecord) -> str | None:
        """A product of two."""
        first, second = _PRODUCTS[signature.name]
        return self.product(signature.get(first), signature.get(second))

    def of_einsum(self, signature: OpSignature, op: OpRecord) -> str | None:
        """A product of any number."""
        items = [item for part in signature.get("args", ())[1:] for item in parts_of(part)]
        reason = next((reason for item in items if (reason := self.zero(item)) is not None), None)
        return reason if all(self._finite(item) for item in items) else None

    def of_sum_with_product(self, signature: OpSignature, op: OpRecord) -> str | None:
        """Something plus a product."""
        added, first, second = _FUSED[signature.name]
        return self.zero(signature.get(added)) and self.product(signature.get(first), signature.get(second))

    def of_map(self, signature: OpSignature, op: OpRecord) -> str | None:
        """A convolution or linear map."""
        bias = signature.get("bias")
        if bias is not None and self.zero(bias) is None:
            return None
        return self.product(signature.get("weight"), signature.get("input"))

    def of_norm(self, signature: OpSignature, op: OpRecord) -> str | None:
        """A normalisation: its scale and its shift. Without eps a constant input makes it 0 / 0."""
        if signature.get("eps") == 0:
            return None
        scale, shift = self.zero(signature.get("weight")), signature.get("bias")
        if scale is None or shift is None:
            return scale
        return f"{scale} and {self.zero(shift)}" if self.zero(shift) else None

    def of_attention(self, signature: OpSignature, op: OpRecord) -> str | None:
        """Attention by its projection at the end."""
        bias = signature.get("out_proj_bias")
        return self.zero(signature.get("out_proj_weight")) if bias is None or self.zero(bias) else None

    def of_embedding(self, signature: OpSignature, op: OpRecord) -> str | None:
        """A table of zeros."""
        return self.zero(signature.get("weight"))

    def of_parts(self, signature: OpSignature, op: OpRecord) -> str | None:
        """Where every one of a few arguments is zero."""
        return self.every(signature.get(name) for name in _TOGETHER[signature.name])

    def of_zeros(self, signature: OpSignature, op: OpRecord) -> str | None:
        """What is made of zeros."""
        return "it is made of zeros"

    def of_structure(self, signature: OpSignature, op: OpRecord) -> str | None:
        """The same numbers in another order, or sums of them."""
        if signature.name == "pad" and signature.get("value") not in (None, 0, 0.0):
            return None
        if signature.name == "view" and signature.get("dtype") is not None:  # -0 is not 0 in other bits
            return None
        whole = signature.get("tensors", signature.get("input"))
        return self.every(parts_of(whole))

    def of_elements(self, signature: OpSignature, op: OpRecord) -> str | None:
        """A function of single numbers: tried at zero."""
        reason = self.zero(signature.get("input"))
        if reason is None or len(signature.inputs) != 1:
            return None
        zero = torch.zeros(1, dtype=self.trace.values[signature.inputs[0]].dtype)
        kwargs = {key: zero if isinstance(item, TensorRef) else item for key, item in op.kwargs.items() if key != "out"}
        args = [zero if isinstance(item, TensorRef) else item for item in op.args]
        with suppress(RuntimeError, TypeError):
            return None if bool(torch.count_nonzero(op.func(*args, **kwargs))) else reason
        return None


_RULES: list[tuple[Any, Callable[[ZeroProof, OpSignature, OpRecord], str | None]]] = [
    (_MAPS, ZeroProof.of_map),
    (_NORMS, ZeroProof.of_norm),
    (_PRODUCTS, ZeroProof.of_product),
    (_FUSED, ZeroProof.of_sum_with_product),
    (_TOGETHER, ZeroProof.of_parts),
    (_ZEROS, ZeroProof.of_zeros),
    (_ELEMENTWISE, ZeroProof.of_elements),
    (STRUCTURE | _REARRANGED, ZeroProof.of_structure),
    (("einsum",), ZeroProof.of_einsum),
    (("embedding",), ZeroProof.of_embedding),
    (("multi_head_attention_forward",), ZeroProof.of_attention),
]
