"""The last linear map of a step: the one layer whose weights can be set anew in closed form.

Of a residual branch it is the convolution or linear layer that is added to the stream, of a plain layer the layer
itself; a batch norm in eval mode behind it is part of the map, and takes up its bias.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal.blocks import BlockGraph
from shoal.blocks.additions import add_operands
from shoal.blocks.trace import ModuleCall, Trace
from shoal.replace.segments import Segment, last_active_call

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# A channel that its batch norm scales by less than this share of the others' median is as good as switched off.
_OFF = 1e-4


@dataclass(frozen=True)
class LastLinear:
    """The layer at `layer`, and the batch norm at `norm` behind it if there is one; `biased`: it can carry a bias."""

    layer: str
    norm: str | None
    biased: bool = True

    def effective(self, model: nn.Module) -> Tensor:
        """The map as one matrix, (outputs, inputs x k x k), float64."""
        weight = model.get_submodule(self.layer).weight.detach().double()  # type: ignore[operator]
        return (weight * self._scale(model).reshape(-1, *[1] * (weight.dim() - 1))).flatten(1)

    def write_(self, model: nn.Module, weight: Tensor, bias: Tensor) -> None:
        """Set layer and norm so that together they compute weight, bias; channels switched off stay as they are."""
        layer: Any = model.get_submodule(self.layer)
        scale = self._scale(model)
        on = scale.abs() > _OFF * scale.abs().median()
        weight, bias = weight.to(scale), bias.to(scale)
        divisor = torch.where(on, scale, 1)[:, None]
        with torch.no_grad():
            fresh = (weight / divisor).reshape(layer.weight.shape).to(layer.weight)
            layer.weight[on] = fresh[on]
            if not self.biased:
                return
            if self.norm is None:
                layer.bias[on] = bias[on].to(layer.bias)
                return
            norm: Any = model.get_submodule(self.norm)
            inner = norm.running_mean.double()
            if layer.bias is not None:
                inner = inner - layer.bias.double()
            norm.bias[on] = (bias + scale * inner)[on].to(norm.bias)

    def _scale(self, model: nn.Module) -> Tensor:
        if self.norm is None:
            layer: Any = model.get_submodule(self.layer)
            return torch.ones(len(layer.weight), dtype=torch.float64, device=layer.weight.device)
        norm: Any = model.get_submodule(self.norm)
        return (norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)).detach()


def last_linear(anatomy: BlockGraph, step: Segment, most_unknowns: int) -> LastLinear | None:
    """The last map of a step; None where it ends in something else, or is too wide to be fitted."""
    if step.residual:
        last = anatomy.additions[step.path][-1]
        operands = add_operands(anatomy.trace.ops[last.op]) or ()
        branch = next((value for value in operands if value != last.stream), None)
        calls = [one for one in anatomy.trace.calls if one.path.startswith(step.path + ".")]
    else:
        calls = [one for one in anatomy.trace.calls if one.path in step.paths]
        last_call = last_active_call(calls)
        branch = (last_call.outputs if step.tail == "identity" else last_call.inputs)[0]
    if branch is None:
        return None
    norm = _returning(anatomy.trace, calls, branch, _NORMS)
    layer = _returning(anatomy.trace, calls, norm.inputs[0] if norm else branch, (nn.Conv2d, nn.Linear))
    if layer is None or not _can_be_set(layer, norm, most_unknowns):
        return None
    if step.residual and not _read_once(anatomy.trace, branch):
        return None
    shape = anatomy.trace.values[branch].shape
    if norm is not None and not (_is_norm_of(layer, norm, shape) and _read_once(anatomy.trace, norm.inputs[0])):
        return None
    biased = norm is not None or layer.module.bias is not None
    return LastLinear(layer.path, norm.path if norm else None, biased)


def _returning(trace: Trace, calls: list[ModuleCall], value: int, kinds: tuple[type, ...]) -> ModuleCall | None:
    found = next((one for one in calls if isinstance(one.module, kinds) and one.outputs == [value]), None)
    return found if found is not None and _is_bare(trace, found) else None


def _is_bare(trace: Trace, call: ModuleCall) -> bool:
    """Whether a module does one thing, with parameters that nothing else reads; its subclasses may do more."""
    ops = trace.ops[call.start : call.stop]
    if len(trace.calls_of(call.module)) > 1 or [op.name for op in ops] not in (["conv2d"], ["linear"], ["batch_norm"]):
        return False
    own = [value for value in ops[0].inputs if trace.values[value].origin == "parameter"]
    return bool(own) and all(_read_once(trace, value) for value in own)


def _read_once(trace: Trace, value: int) -> bool:
    return len(trace.readers.get(value, [])) == 1


def _is_norm_of(layer: ModuleCall, norm: ModuleCall, shape: tuple[int, ...]) -> bool:
    """Whether the norm scales the outputs of the layer: on tokens a BatchNorm1d takes the positions for channels."""
    axes = 2 if isinstance(layer.module, nn.Linear) else 4
    module: Any = norm.module
    parts = (module.weight, module.bias, module.running_mean)
    return len(shape) == axes and all(one is not None for one in parts)


def _can_be_set(layer: ModuleCall, norm: ModuleCall | None, most_unknowns: int) -> bool:
    module: Any = layer.module
    if isinstance(module, nn.Linear):
        return module.in_features <= most_unknowns
    k, dilation = module.kernel_size[0], module.dilation[0]
    plain = module.groups == 1 and module.padding_mode == "zeros" and k % 2 == 1
    square = module.kernel_size == (k, k) and module.stride == (module.stride[0],) * 2
    padded = module.padding == (dilation * (k // 2),) * 2 and module.dilation == (dilation,) * 2
    return bool(plain and square and padded and module.in_channels * k * k <= most_unknowns)
