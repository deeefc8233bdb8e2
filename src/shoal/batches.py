"""One mini-batch: how to feed it to a model, and how to read its outputs.

Any loader that yields `(inputs, target)`, `inputs`, or a dict of tensors works.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from inspect import Parameter, signature
from itertools import chain, pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from shoal.deprecated import former_names
from shoal.errors import (
    DataError,
    ModelRaisedError,
    NonFiniteError,
    OutOfMemoryError,
    ShoalError,
    check_memory,
    kind_of,
)
from shoal.offloaded import where_it_runs
from shoal.outputs import check_numbers, read_outputs

T = TypeVar("T")

_TARGET_KEYS = ("labels", "label", "target", "targets", "y")
IGNORED = -100  # the label that torch's cross-entropy skips


@dataclass(frozen=True)
class TilePlace:
    """Where a sample was cut out of a larger image, in pixels of the image.

    Args:
        image: a number that the tiles of one image share.
        top: of the tile.
        left: of the tile.
        height: of the image.
        width: of the image.
    """

    image: int
    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Batch:
    """What a model is called with, and the answer where one is known.

    Args:
        args: positional arguments of the model.
        kwargs: keyword arguments of the model.
        target: class indices, shape (samples,) or (samples, ...), or None. Of a language model they stand at the
            position that answers them: the labels of a dict that are its `input_ids` are moved there by `as_batch`.
        annotations: labels that make no tensor, one for each sample: the boxes of a detector, say; None for none.
        places: where each sample was cut out, of tiles; None of whole samples.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    target: Tensor | None = None
    annotations: tuple[Any, ...] | None = None
    places: tuple[TilePlace, ...] | None = None

    @property
    def labels(self) -> Any:
        """The labels in whichever form they are; None without any."""
        return self.target if self.target is not None else self.annotations

    @property
    def tensors(self) -> list[Tensor]:
        """Every input tensor, positional ones first."""
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)]

    @property
    def size(self) -> int:
        """How many samples."""
        return int(self.tensors[0].shape[0])

    def counted(self, shape: tuple[int, ...] | torch.Size) -> Tensor | None:
        """Which answers count, (samples, positions), where padding does not; None where all do.

        Args:
            shape: of the answers without their classes. A mask of another shape says nothing about them.
        """
        key = "decoder_attention_mask" if "decoder_input_ids" in self.kwargs else "attention_mask"
        mask = self.kwargs.get(key)
        if not isinstance(mask, Tensor) or tuple(mask.shape) != tuple(shape) or bool((mask != 0).all()):
            return None
        return mask != 0

    def counted_in(self, stream: Tensor) -> Tensor | None:
        """Which positions of a stream (samples, positions, channels) are no padding, on its device; None: all."""
        counted = self.counted(stream.shape[:-1])
        return counted.to(stream.device) if counted is not None else None

    def to(self, device: torch.device | str, memory_format: torch.memory_format | None = None) -> "Batch":
        """The batch on a device; 4-d inputs in `memory_format` where one is given."""

        def move(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: move(part) for key, part in value.items()}
            if not isinstance(value, Tensor):
                return value
            if memory_format is not None and value.dim() == 4:
                return value.to(device, memory_format=memory_format)
            return value.to(device)

        target = self.target.to(device) if self.target is not None else None
        kwargs = {key: move(value) for key, value in self.kwargs.items()}
        return replace(self, args=tuple(move(value) for value in self.args), kwargs=kwargs, target=target)

    def cloned(self) -> "Batch":
        """A batch of copies of the input tensors."""

        def copied(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: copied(part) for key, part in value.items()}
            return value.clone() if isinstance(value, Tensor) else value

        kwargs = {key: copied(value) for key, value in self.kwargs.items()}
        return replace(self, args=tuple(copied(value) for value in self.args), kwargs=kwargs)

    def take(self, count: int) -> "Batch":
        """The first `count` samples."""
        return self._part(slice(count))

    def rest(self, count: int) -> "Batch":
        """All but the first `count` samples."""
        return self._part(slice(count, None))

    def divided(self, parts: int) -> list["Batch"]:
        """Its samples in so many parts of nearly equal size, in order; the last ones are empty where there are few."""
        bounds = [number * self.size // parts for number in range(parts + 1)]
        return [self._part(slice(start, stop)) for start, stop in pairwise(bounds)]

    def resized(self, count: int) -> "Batch":
        """So many samples: the first, or all of them over and over."""
        return self._part(torch.arange(count) % self.size if count > self.size > 0 else slice(count))

    def _part(self, part: slice | Tensor) -> "Batch":
        def cut(value: Any) -> Any:
            if isinstance(value, dict):  # the further conditions of a diffusion model
                return {key: cut(part) for key, part in value.items()}
            if not isinstance(value, Tensor) or value.dim() == 0:
                return value
            return value[part if isinstance(part, slice) else part.to(value.device)]

        kwargs = {key: cut(value) for key, value in self.kwargs.items()}
        target = cut(self.target) if self.target is not None else None
        args = tuple(cut(value) for value in self.args)
        return Batch(args, kwargs, target, _rows_of(self.annotations, part), _rows_of(self.places, part))


def _rows_of(values: tuple[T, ...] | None, part: slice | Tensor) -> tuple[T, ...] | None:
    if values is None:
        return None
    if isinstance(part, slice):
        return values[part]
    return tuple(values[row] for row in part.tolist())


def as_batch(item: Any) -> Batch:
    """Read one item of a loader.

    Arrays of numpy count as tensors, the fields of a dataclass as entries of a dict.

    Raises:
        DataError: the item is not `(inputs, target)`, `inputs` or a dict of tensors.
    """
    if isinstance(item, Batch):
        return item
    kind, item = kind_of(item), _as_usual(item)
    if isinstance(item, Tensor):
        return Batch(args=(item,))
    if isinstance(item, Mapping):
        inputs = dict(item)
        key = next((name for name in _TARGET_KEYS if name in inputs), None)
        target = inputs.pop(key) if key is not None else None
        if key == "labels" and isinstance(target, Tensor) and _are_own_tokens(target, inputs):
            target = next_tokens(target, inputs.get("attention_mask"))
        if any(isinstance(value, Tensor) for value in inputs.values()):
            return _labelled(Batch(kwargs=inputs), target)
    if isinstance(item, (tuple, list)) and 1 <= len(item) <= 2:
        if len(item) == 2 and _are_several_inputs(item[0], item[1]):
            return _labelled(Batch(args=tuple(item[0])), item[1])
        inputs_of = _stacked(item[0])
        if isinstance(inputs_of, (Tensor, Mapping)):
            batch = as_batch(inputs_of)
            return _labelled(batch, item[1]) if len(item) == 2 else batch
    if isinstance(item, Mapping):
        kind += f" of {', '.join(map(repr, item)) or 'nothing'}, in which there is no tensor for the network"
    several = isinstance(item, (tuple, list)) and len(item) > 2 and all(isinstance(part, Tensor) for part in item)
    raise DataError(
        f"a mini-batch is {kind}{f' of {len(item)} tensors' if several else ''}, expected "
        "(inputs, target), inputs, or a dict of tensors",
        "Which of them are inputs? Yield ((first, second), target), or a dict by the names of the network's inputs."
        if several
        else "Wrap the loader so that each item is one of these.",
    )


def _as_usual(item: Any) -> Any:
    """An item of a loader with tensors for numpy's arrays, and a dict for a dataclass."""
    if isinstance(item, np.ndarray):
        return torch.from_numpy(np.array(item)) if item.dtype.kind in "biufc" else item
    if is_dataclass(item) and not isinstance(item, type):
        values = {entry.name: getattr(item, entry.name) for entry in fields(item)}
        return {name: _as_usual(value) for name, value in values.items() if value is not None}
    if isinstance(item, Mapping):
        return {name: _as_usual(value) for name, value in item.items()}
    if isinstance(item, (tuple, list)):
        return [_as_usual(part) for part in item]
    return item


def _are_several_inputs(inputs: Any, target: Any) -> bool:
    """Whether a row of tensors has one for each input of the network, not one for each sample, as the labels tell."""
    if not isinstance(inputs, (tuple, list)) or not all(isinstance(part, Tensor) for part in inputs):
        return False
    size = target.shape[0] if isinstance(target, Tensor) and target.dim() else None
    return bool(inputs) and len(inputs) != size and all(part.shape[:1] == (size,) for part in inputs)


def _stacked(inputs: Any) -> Any:
    """Images of one size in a list, as the collate function of a detector leaves them, are one tensor.

    Raises:
        DataError: they differ in size.
    """
    if not isinstance(inputs, (list, tuple)) or not inputs or not all(isinstance(part, Tensor) for part in inputs):
        return inputs
    shapes = sorted({tuple(part.shape) for part in inputs})
    if len(shapes) > 1:
        raise DataError(
            f"a mini-batch is a list of {len(inputs)} tensors of different shapes: {shapes[0]} and {shapes[1]}",
            "Bring all samples to one size (resize, crop or pad), or give mini-batches of one sample each.",
        )
    return torch.stack(tuple(inputs))


def _labelled(batch: Batch, labels: Any) -> Batch:
    """The mini-batch with labels: a tensor where they make one, else an annotation for each sample."""
    if isinstance(labels, (list, tuple)) and labels and all(isinstance(label, Mapping) for label in labels):
        if len(labels) != batch.size:
            raise DataError(
                f"{len(labels)} annotations for {batch.size} samples", "Yield one annotation for each sample."
            )
        return replace(batch, annotations=tuple(labels))
    return replace(batch, target=_as_target(labels))


def _as_target(target: Any) -> Tensor | None:
    if target is not None and not isinstance(target, Tensor):
        try:
            target = torch.as_tensor(target)
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(
                f"the targets of a mini-batch are a {type(target).__name__} that makes no tensor: {error}",
                "Yield a tensor of labels or values for each mini-batch, or the inputs alone: labels are not needed.",
            ) from error
    if target is not None and target.dim() == 0:
        raise DataError(
            "the target of a mini-batch is a single number",
            "Yield mini-batches, not samples: wrap a data set in torch.utils.data.DataLoader.",
        )
    if target is not None and (target.is_floating_point() or target.is_complex()):
        bad = int((~torch.isfinite(target)).sum())
        if bad:
            raise NonFiniteError(
                f"the targets of a mini-batch hold NaN or Inf: {bad} of {target.numel()} values",
                "Leave these samples out, or yield the inputs alone: targets are not needed.",
            )
    return target


def _are_own_tokens(labels: Tensor, inputs: Mapping[str, Any]) -> bool:
    """Whether labels are the tokens of the input themselves, as transformers wants them for a language model."""
    tokens = inputs.get("input_ids")
    if not isinstance(tokens, Tensor) or "decoder_input_ids" in inputs:
        return False
    if labels.dim() != 2 or labels.shape != tokens.shape or labels.shape[1] < 2:
        return False
    skipped = labels == IGNORED
    return bool(((labels == tokens) | skipped).all()) and not bool(skipped.all())


def next_tokens(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """What a language model should say at each position: the token after it; nothing (-100) at the last one.

    Args:
        tokens: (samples, positions); -100 is never an answer.
        mask: 0 where a token is padding, which is never an answer either.
    """
    target = torch.full_like(tokens, IGNORED)
    target[:, :-1] = tokens[:, 1:]
    if mask is not None and mask.shape == tokens.shape:
        target[:, :-1][mask[:, 1:] == 0] = IGNORED
    return target


def batches(loader: Iterable[Any], device: torch.device | str | None = None) -> Iterator[Batch]:
    """The mini-batches of a loader, on `device` where one is given; empty ones are refused."""
    for item in items_of(loader):
        batch = as_batch(item)
        if not batch.tensors or batch.size == 0:
            raise DataError("a loader yielded a mini-batch without samples", "Check the data set and its filter.")
        yield batch.to(device) if device is not None else batch


def first_samples(source: Iterable[Batch], limit: int | None) -> Iterator[Batch]:
    """The mini-batches with the first `limit` samples, the last one cut to fit; all of them for None."""
    remaining = math.inf if limit is None else limit
    for batch in source:
        yield batch if batch.size <= remaining else batch.take(int(remaining))
        remaining -= batch.size
        if remaining <= 0:
            return


def items_of(loader: Iterable[Any]) -> Iterator[Any]:
    """What a loader yields.

    Raises:
        DataError: it is no loader, or raised; the cause is attached.
    """
    check_loader(loader)
    iterator: Iterator[Any] | None = None
    while True:
        try:
            iterator = iter(loader) if iterator is None else iterator
            item = next(iterator)
        except StopIteration:
            return
        except ShoalError:
            raise
        except Exception as error:
            check_memory(error, "reading the data")
            raise DataError(
                f"the loader of the data raised {type(error).__name__}: {error}",
                "Read it to its end without Shoal: `for batch in loader: pass`.",
            ) from error
        yield item


def check_loader(loader: object) -> None:
    """Refuse what yields no mini-batches but nothing, or letters, keys, single samples, layers.

    Raises:
        DataError: says what it is, and how to come from there to a loader.
    """
    if isinstance(loader, (str, bytes)):
        hint = "shoal.load_data(...) reads a specification, and its calibration(), validation() and test() are loaders."
    elif hasattr(loader, "calibration"):
        hint = "Its calibration(), validation() and test() are loaders."
    elif isinstance(loader, (Batch, Mapping)) or hasattr(loader, "__array__"):
        hint = "In a list a single mini-batch is a loader: [batch]."
    elif isinstance(loader, (nn.Module, type)) or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        hint = "Give a DataLoader, or a list of mini-batches."
    else:
        return
    raise DataError(f"the data is {kind_of(loader)}, expected a loader, which yields mini-batches", hint)


def is_read_once(loader: Iterable[Any]) -> bool:
    """Whether a loader gives its mini-batches a single time: an iterator, or what hands out the same one each time."""
    dataset = loader.dataset if isinstance(loader, DataLoader) else loader
    if isinstance(dataset, Iterator):
        return True
    # Only plain iterables are opened: a DataLoader would start workers and draw a seed, a data set may be large.
    if isinstance(dataset, (DataLoader, Sequence)) or not isinstance(dataset, Iterable):
        return False
    return iter(dataset) is iter(dataset)


def check_one_purpose(**loaders: Any) -> None:
    """Refuse what is no loader, and an iterator that serves twice: who reads it first leaves nothing to the other.

    Args:
        loaders: by the name of their purpose; None for none.

    Raises:
        DataError: says what it is, or names both purposes.
    """
    seen: dict[int, str] = {}
    for name, loader in loaders.items():
        if loader is None:
            continue
        check_loader(loader)
        if id(loader) in seen and is_read_once(loader):
            raise DataError(
                f"the {seen[id(loader)]} data and the {name} data are the same iterator, which can be read only once",
                "Give each its own, or a list of mini-batches or a DataLoader for both.",
            )
        seen[id(loader)] = name


class Repeatable:
    """A loader that is read several times: one that can be read only once is kept, one that runs dry is refused.

    Args:
        loader: any.
        name: what the data is, for errors.
    """

    def __init__(self, loader: Iterable[Any], name: str = "data") -> None:
        self.loader = list(items_of(loader)) if isinstance(loader, Iterator) else loader
        self.name, self._read, self._gave = name, False, False

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # a TypeError where it has none, as of any iterable

    def __iter__(self) -> Iterator[Any]:
        if not self._read and is_read_once(self.loader):
            self.loader = list(items_of(self.loader))
        self._read, gives = True, False
        for item in items_of(self.loader):
            self._gave = gives = True
            yield item
        if self._gave and not gives:
            raise DataError(
                f"the loader of the {self.name} gave mini-batches at first, and none when it was read again",
                "Give a list of mini-batches, a DataLoader, or an iterable that begins anew each time.",
            )


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lives, or is computed on if it is offloaded; the CPU without any."""
    tensors = list(chain(model.parameters(), model.buffers()))
    tensor: Tensor | None = next((candidate for candidate in tensors if not candidate.is_meta), None)
    if tensor is not None:
        return tensor.device
    return where_it_runs(model) or torch.device("meta" if tensors else "cpu")


def like_of(model: nn.Module) -> Tensor:
    """An empty tensor with the dtype and the device of the model's weights, for modules that are to join it."""
    dtypes = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return torch.empty(0, dtype=next(dtypes, torch.float32), device=device_of(model))


def call(model: nn.Module, batch: Batch, *, clone: bool = True) -> Any:
    """Run the model on a batch; its own exceptions come back as one readable error.

    The model gets clones: one that normalises its input in place must not change a mini-batch that is used again.

    Raises:
        DataError: labels of a text without what the decoder reads.
        ModelRaisedError: the model raised; the cause is attached.
    """
    _check_decoder(model, batch)
    inputs = batch.cloned() if clone else batch
    try:
        return model(*inputs.args, **inputs.kwargs)
    except ShoalError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in batch.tensors)
        check_memory(error, f"in the model on an input of shape {shapes}")
        raise ModelRaisedError(
            f"the model raised {type(error).__name__} on an input of shape {shapes}: {error}",
            _names_hint(model, batch)
            or "Check the input's shape, channels and dtype (--size, --mean, --std), or the model itself.",
        ) from error


def _check_decoder(model: nn.Module, batch: Batch) -> None:
    """Refuse labels of a text alone for an encoder with a decoder: its decoder reads the tokens before each label.

    Without them some networks raise, and others let the decoder read the encoder's input: figures of no use.

    Raises:
        DataError: says how to come by them.
    """
    shift, target = getattr(model, "prepare_decoder_input_ids_from_labels", None), batch.target
    if not callable(shift) or target is None or target.dim() != 2 or target.is_floating_point():
        return
    if not any(name.startswith("decoder_") for name in batch.kwargs):
        raise DataError(
            f"the mini-batches have labels, but nothing for the decoder of {type(model).__name__} to read",
            "Add decoder_input_ids: `model.prepare_decoder_input_ids_from_labels(labels)`, or"
            " `DataCollatorForSeq2Seq(tokenizer, model=model)`.",
        )


def _names_hint(model: nn.Module, batch: Batch) -> str | None:
    """What to do where a mini-batch names inputs that the network does not take."""
    try:
        taken = signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return None
    names = [
        parameter.name
        for parameter in taken
        if parameter.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    ]
    strange = [name for name in batch.kwargs if name not in names]
    if not strange or any(parameter.kind is Parameter.VAR_KEYWORD for parameter in taken):
        return None
    return (
        f"The entries of a dict are passed by name, and {type(model).__name__} takes {', '.join(names) or 'none'}: "
        f"leave {', '.join(map(repr, strange))} out of the mini-batch, or call labels one of {', '.join(_TARGET_KEYS)}."
    )


def call_in_parts(model: nn.Module, batch: Batch) -> Iterator[tuple[Batch, Any]]:
    """Run the model on a batch, in halves of halves where memory does not suffice for all samples at once.

    For whoever looks at samples one by one, in eval mode: their outputs are the same, up to the rounding of kernels for
    other batch sizes.

    Yields:
        Each part of the batch, in order, with the output of the model.

    Raises:
        OutOfMemoryError: one sample is too much, or an input has no row for each sample.
        ModelRaisedError: the model raised.
    """
    output, split = None, False
    try:
        output = call(model, batch)
    except OutOfMemoryError:
        if batch.size < 2 or any(tensor.shape[:1] != (batch.size,) for tensor in batch.tensors):
            raise
        split = True  # and no more in here, where the error holds on to what the run that failed has taken
    if not split:
        yield batch, output
        return
    half = batch.size // 2
    yield from call_in_parts(model, batch.take(half))
    yield from call_in_parts(model, batch.rest(half))


def logits_of(output: Any) -> Tensor:
    """The main tensor a model returned: itself, `.logits`, `["logits"]`, or the first floating-point one.

    Raises:
        DataError: there is no floating-point tensor in the output.
    """
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    floating = read_outputs(output).floating
    if not floating:
        raise DataError(
            f"the model returned {type(output).__name__} without a floating-point tensor",
            "Wrap the model so that it returns its logits.",
        )
    return floating["logits"] if "logits" in floating else next(iter(floating.values()))


def check_logits(logits: Tensor, who: str = "the model") -> None:
    """Refuse NaN and +Inf in the outputs of a model; `who` names it in the message.

    Raises:
        NonFiniteError: with the count.
    """
    check_numbers({"": logits}, who)


__getattr__ = former_names(__name__, {"digest_of": "shoal.fingerprint:digest_of"})
