"""The form in which a student learns: weights in float32, stand-ins as shortcut and rest; and the way back.

In half precision a step is mostly rounded away: a weight of bfloat16 moves by 1/256 of itself or not at all.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch, call
from shoal.plan import Replacement
from shoal.recover.trainable import make_plain_, make_trainable_

HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True, eq=False)
class TrainableFormat:
    """What was changed so that a student learns better, for the way back.

    Args:
        dtypes: of weights and buffers that were in half precision, by name.
        stand_ins: of the plan, by path.
        rewritten: the paths of those that were rewritten.
    """

    dtypes: Mapping[str, torch.dtype]
    stand_ins: Mapping[str, Replacement]
    rewritten: Sequence[str]

    @property
    def changed(self) -> bool:
        """Whether anything was."""
        return bool(self.dtypes or self.rewritten)


def to_trainable_(model: nn.Module, stand_ins: Mapping[str, Replacement], known: Sequence[Batch]) -> TrainableFormat:
    """Bring a student into the form in which it learns, in place; in eval mode the same function, up to rounding.

    Args:
        model: a copy.
        stand_ins: what stands where; see `make_trainable_`.
        known: mini-batches on the model's device that batch norms of stand-ins are set from.
    """
    dtypes = upcast_(model)
    return TrainableFormat(
        dtypes, stand_ins, make_trainable_(model, stand_ins, [match_dtype(model, one) for one in known])
    )


def from_trainable_(model: nn.Module, form: TrainableFormat) -> nn.Module:
    """Bring it back: each stand-in as its plan says, each weight in its own dtype; in place."""
    return downcast_(make_plain_(model, form.stand_ins), form.dtypes)


def upcast_(model: nn.Module) -> dict[str, torch.dtype]:
    """Half precision to float32, in place; returns what was in which, by name."""
    found = {name: tensor.dtype for name, tensor in _tensors(model) if tensor.dtype in HALVES}
    for name, tensor in _tensors(model):
        if name in found:
            tensor.data = tensor.data.float()  # it stays the same object, so that tied weights stay tied
    return found


def downcast_(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> nn.Module:
    """Each of the named tensors in its dtype again, in place."""
    for name, tensor in _tensors(model):
        if name in dtypes:
            tensor.data = tensor.data.to(dtypes[name])
    return model


def forward_in_format(model: nn.Module, batch: Batch) -> Any:
    """Run a network on a mini-batch made for it, or for its twin in half precision."""
    return call(model, match_dtype(model, batch))


def match_dtype(model: nn.Module, batch: Batch) -> Batch:
    """The mini-batch, its inputs of half precision in float32 where none of the weights is in half; nothing is lost."""
    if not any(one.dtype in HALVES for one in batch.tensors) or any(one.dtype in HALVES for one in model.parameters()):
        return batch

    def wide(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.dtype in HALVES else value

    kwargs = {key: wide(value) for key, value in batch.kwargs.items()}
    return Batch(tuple(wide(value) for value in batch.args), kwargs, batch.target)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
