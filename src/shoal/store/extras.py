"""State outside the state dict, and outputs that a reloaded network has to reproduce: loading is complete, and checked.

Buffers that are not persistent, numbers and tensors in attributes, and what get_extra_state returns are in no weights
file, and a factory need not build them as they were when the network was saved. They are kept here and put back. What
cannot be kept (a table in an object, a mode in a string) shows in the outputs: those on a seeded input are remembered,
and a loaded network with other outputs is refused.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from shoal.batches import Batch, call
from shoal.errors import ShoalError, WeightsError
from shoal.files.reading import refusing
from shoal.files.tensors import read_tensors, write_tensors
from shoal.offloaded import is_offloaded
from shoal.outputs import read_outputs
from shoal.plan import InputSpec
from shoal.preserve import evaluating, shared_copy
from shoal.record import FrozenModel
from shoal.store.entries import decode, encode, is_plain_tensor, special_entries
from shoal.surgery import example_of

_KEY = "shoal-extras"
_AGAIN = "Run the command that made the folder again."
_SAMPLES = 64  # values of an output that are kept, so that another machine's rounding can be told from another function
# How far an output may be off, relative to its largest value: by rounding alone, and on any machine.
_ROUNDING = 16
_ELSEWHERE = {torch.float64: 1e-9, torch.float32: 1e-3}
_MODULE_OWN = frozenset(vars(nn.Module()))

Number = None | bool | int | float | list[Any]


class OutputPrint(FrozenModel):
    """One output tensor: its digest, its largest value, and some of its values, evenly spaced."""

    shape: list[int]
    dtype: str
    sha256: str
    largest: float
    values: list[float]


class Extras(FrozenModel):
    """State of a network outside its state dict.

    Args:
        numbers: attributes of modules by `path.name`; tuples as lists.
        tensors: the digests of buffers that are not persistent, and of tensors in attributes.
        states: entries of the state dict that are no plain tensors, as `encode` wrote them.
        highest: the largest value of each integer input, by its place, to draw inputs like it.
        inputs: what the outputs were computed from: 'random', 'zeros'; None where there are no outputs.
        outputs: by name.
        unchecked: why there are no outputs.
    """

    numbers: dict[str, Number] = Field(default_factory=dict)
    tensors: dict[str, str] = Field(default_factory=dict)
    states: dict[str, Any] = Field(default_factory=dict)
    highest: dict[int, int] = Field(default_factory=dict)
    inputs: str | None = None
    outputs: dict[str, OutputPrint] = Field(default_factory=dict)
    unchecked: str | None = None


def save_extras(model: nn.Module, specs: list[InputSpec], path: Path, example: Batch | None = None) -> None:
    """Write the state of `model` outside its state dict, and its outputs.

    Args:
        model: any network; what is kept is what a copy of it on the CPU computes with.
        specs: its inputs, as its plan remembers them.
        path: of the file.
        example: a mini-batch, for how large its integers are.
    """
    if is_offloaded(model):  # a copy of it would not fit into memory
        return
    twin = _laid_out_(shared_copy(model).to("cpu"))
    extras, tensors = _extras_of(twin, specs, example)
    write_tensors(path, tensors, {_KEY: json.dumps(extras.model_dump())})


def read_extras(path: Path) -> tuple[Extras, dict[str, Tensor]]:
    """What `save_extras` wrote, and the tensors it refers to; nothing where there is no such file.

    Raises:
        WeightsError: the file is damaged.
    """
    if not path.exists():
        return Extras(), {}
    tensors, metadata = read_tensors(path, WeightsError, f"'{path}' is damaged", _AGAIN, keys=(_KEY,), sealed=True)
    with refusing(WeightsError, f"'{path}' is damaged", _AGAIN):
        return Extras.model_validate(json.loads(metadata[_KEY])), tensors


def states_of(extras: Extras, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The entries of the state dict that no weights file holds.

    Raises:
        WeightsError: the file is damaged.
    """
    with refusing(WeightsError, f"'{path}' is damaged", _AGAIN):
        return {name: decode(data, tensors) for name, data in extras.states.items()}


def restore_extras_(model: nn.Module, extras: Extras, tensors: Mapping[str, Tensor]) -> None:
    """Put numbers, tensors and buffers back where `save_extras` found them."""
    modules = dict(model.named_modules())
    for key, number in extras.numbers.items():
        owner, _, name = key.rpartition(".")
        if owner in modules:
            _put_number(modules[owner], name, number)
    for key, digest in extras.tensors.items():
        owner, _, name = key.rpartition(".")
        if owner in modules and digest in tensors:
            _put_tensor(modules[owner], name, tensors[digest], digest)


def _put_number(module: nn.Module, name: str, number: Number) -> None:
    before = module.__dict__.get(name)
    if _is_number(before):
        module.__dict__[name] = tuple(number) if isinstance(before, tuple) and isinstance(number, list) else number


def _put_tensor(module: nn.Module, name: str, tensor: Tensor, digest: str) -> None:
    holder: dict[str, Any] = module._buffers if name in module._buffers else module.__dict__
    before = holder.get(name)
    if not (before is None or isinstance(before, Tensor)) or (before is not None and _digest(before) == digest):
        return
    if before is None and holder is module.__dict__ and not hasattr(module, name):
        module.register_buffer(name, tensor, persistent=False)  # registered while it ran
        return
    if isinstance(before, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=before.requires_grad)
    holder[name] = tensor


def check_answers(model: nn.Module, specs: list[InputSpec], extras: Extras, *, by_rounding: bool = False) -> None:
    """Refuse a network whose outputs differ from those of the saved one.

    Args:
        model: on the CPU.
        specs: its inputs.
        extras: as they were saved.
        by_rounding: it was saved on this machine, so that only rounding may tell them apart.

    Raises:
        WeightsError: says which output differs, and by how much.
    """
    if extras.inputs is None:
        return
    trial = _trial(specs, extras.highest, extras.inputs)
    try:
        actual = _answers(model, trial)
    except ShoalError as error:
        raise WeightsError(f"the network does not run as it did when it was saved: {error.message}", _HINT) from error
    reason = _difference(extras.outputs, actual, by_rounding=by_rounding)
    if reason is not None and by_rounding:
        reason = _difference(extras.outputs, actual, by_rounding=True, rounding=_rounding(model, trial, actual))
    if reason is not None:
        raise WeightsError(f"the network computes something else than the one that was saved: {reason}", _HINT)


_HINT = (
    "Something it computes with is neither in its state dict nor a number, tensor or buffer of its modules: let its "
    "factory build it as it was. load(folder, verify=False) takes it as it is."
)


def _extras_of(model: nn.Module, specs: list[InputSpec], example: Batch | None) -> tuple[Extras, dict[str, Tensor]]:
    highest = _highest(example)
    inputs, outputs, unchecked = _observed(model, specs, highest)
    numbers, tensors = _held(model)
    if inputs is not None:  # what another run changes is no state: counters, features that are kept
        _answers(model, _trial(specs, highest, inputs, seed=1))
        later, made = _held(model)
        numbers = {key: value for key, value in numbers.items() if key in later and _same_number(later[key], value)}
        tensors = {key: value for key, value in tensors.items() if made.get(key) is value}
    kept: dict[str, Tensor] = {}

    def keep(tensor: Tensor) -> str:
        digest = _digest(tensor)
        kept[digest] = tensor.detach().to("cpu").contiguous().clone()
        return digest

    extras = Extras(
        numbers=numbers,
        tensors={key: keep(tensor) for key, tensor in tensors.items()},
        states={name: encode(value, keep) for name, value in special_entries(model).items()},
        highest=highest,
        inputs=inputs,
        outputs=outputs,
        unchecked=unchecked,
    )
    return extras, kept


def _observed(
    model: nn.Module, specs: list[InputSpec], highest: Mapping[int, int]
) -> tuple[str | None, dict[str, OutputPrint], str | None]:
    """What was put in, what came out, and why nothing did."""
    reason = "it does not run"
    for inputs in ("random", "zeros"):
        try:
            first, second = (_answers(model, _trial(specs, highest, inputs)) for _ in range(2))
        except ShoalError as error:
            reason = error.message
            continue
        if first != second:
            return None, {}, "its outputs differ from run to run"
        return inputs, first, None
    return None, {}, reason


def _answers(model: nn.Module, batch: Batch) -> dict[str, OutputPrint]:
    with evaluating(model):
        torch.default_generator.manual_seed(0)  # of the CPU alone, which is put back
        return {name: _print(tensor) for name, tensor in read_outputs(call(model, batch)).tensors.items()}


def _rounding(model: nn.Module, batch: Batch, actual: Mapping[str, OutputPrint]) -> dict[str, float]:
    """How far its outputs are from those in double precision; nothing where it does not run in that.

    Another layout in memory or number of threads moves them by about as much, which is a lot where small differences of
    large numbers count.
    """

    def doubled(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    kwargs = {key: doubled(value) for key, value in batch.kwargs.items()}
    try:
        exact = _answers(
            shared_copy(model).double(), replace(batch, args=tuple(map(doubled, batch.args)), kwargs=kwargs)
        )
    except ShoalError:
        return {}
    both = [(name, exact[name].values, seen.values) for name, seen in actual.items() if name in exact]
    return {
        name: float((torch.tensor(first) - torch.tensor(second)).abs().nan_to_num(nan=0.0).max())
        for name, first, second in both
        if first and len(first) == len(second)
    }


def _print(tensor: Tensor) -> OutputPrint:
    numbers = tensor.detach().flatten().double()
    places = torch.linspace(0, max(numbers.numel() - 1, 0), min(_SAMPLES, numbers.numel())).long()
    finite = numbers[torch.isfinite(numbers)]
    return OutputPrint(
        shape=list(tensor.shape),
        dtype=str(tensor.dtype).removeprefix("torch."),
        sha256=_digest(tensor),
        largest=float(finite.abs().max()) if finite.numel() else 0.0,
        values=numbers[places].tolist(),
    )


def _difference(
    saved: Mapping[str, OutputPrint],
    actual: Mapping[str, OutputPrint],
    *,
    by_rounding: bool,
    rounding: Mapping[str, float] | None = None,
) -> str | None:
    if set(saved) != set(actual):
        return f"it returns {', '.join(map(repr, actual)) or 'no tensor'}, not {', '.join(map(repr, saved))}"
    for name, expected in saved.items():
        observed, which = actual[name], f"its output '{name}'" if name else "its output"
        if (expected.shape, expected.dtype) != (observed.shape, observed.dtype):
            return f"{which} is {observed.dtype}{observed.shape}, expected {expected.dtype}{expected.shape}"
        if expected.sha256 == observed.sha256:
            continue
        dtype = getattr(torch, expected.dtype)
        if not dtype.is_floating_point:
            return f"{which} holds other numbers"
        elsewhere = _ELSEWHERE.get(dtype, 0.1) * expected.largest
        allowed = _ROUNDING * torch.finfo(dtype).eps * expected.largest if by_rounding else elsewhere
        allowed = max(allowed, min(_ROUNDING * (rounding or {}).get(name, 0.0), elsewhere))
        off = (torch.tensor(expected.values) - torch.tensor(observed.values)).abs()
        alike = torch.tensor(expected.values).eq(torch.tensor(observed.values)) | _both_nan(
            expected.values, observed.values
        )
        largest = float(off.masked_fill(alike, 0.0).nan_to_num(nan=torch.inf).max())
        if max(largest, abs(expected.largest - observed.largest)) > allowed:
            return f"{which} is up to {largest:.3g} away (largest value {expected.largest:.3g})"
    return None


def _both_nan(first: list[float], second: list[float]) -> Tensor:
    return torch.tensor(first).isnan() & torch.tensor(second).isnan()


def _highest(example: Batch | None) -> dict[int, int]:
    tensors = example.tensors if example is not None else []
    whole = {
        place: tensor for place, tensor in enumerate(tensors) if not (tensor.is_floating_point() or tensor.is_complex())
    }
    return {place: int(tensor.max()) for place, tensor in whole.items() if tensor.numel()}


def _trial(specs: list[InputSpec], highest: Mapping[int, int], inputs: str, seed: int = 0) -> Batch:
    """An input as the network takes it: seeded random numbers, masks that hide nothing, or zeros."""
    generator, batch = torch.Generator().manual_seed(seed), example_of(specs)
    tensors = [spec for spec in specs if not spec.is_constant]
    ordered = sorted(tensors, key=lambda spec: spec.keyword is not None)  # positional ones first
    for place, (tensor, spec) in enumerate(zip(batch.tensors, ordered, strict=True)):
        if inputs == "zeros":
            continue
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        elif "attention_mask" in (spec.keyword or ""):
            tensor.fill_(1)
        elif tensor.dtype is not torch.bool and highest.get(place, 0) > 0:
            tensor.copy_(torch.randint(highest[place] + 1, tensor.shape, generator=generator))
    return batch


def _held(model: nn.Module) -> tuple[dict[str, Number], dict[str, Tensor]]:
    """Numbers and tensors of modules other than parameters and persistent buffers, by `path.name`."""
    numbers: dict[str, Number] = {}
    tensors: dict[str, Tensor] = {}
    saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}  # an attribute may be another name
    for path, name, value in _attributes(model):
        key = f"{path}.{name}" if path else name
        if _is_number(value):
            numbers[key] = list(value) if isinstance(value, tuple) else value
        elif isinstance(value, Tensor) and id(value) not in saved and _is_kept(value):
            tensors[key] = value
    return numbers, tensors


def _attributes(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    for path, module in model.named_modules():
        if type(module).__module__.startswith("shoal."):  # what surgery put there is rebuilt by the plan
            continue
        for name, value in vars(module).items():
            if name not in _MODULE_OWN:
                yield path, name, value
        for name in sorted(module._non_persistent_buffers_set):
            yield path, name, module._buffers.get(name)


def _is_number(value: Any) -> bool:
    if isinstance(value, (tuple, list)) and type(value) in (tuple, list):
        return all(map(_is_number, value)) and not any(isinstance(part, (tuple, list)) for part in value)
    return value is None or type(value) in (bool, int, float)


def _same_number(first: Number, second: Number) -> bool:
    return first == second or (first != first and second != second)


def _is_kept(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_meta and is_plain_tensor(tensor)


def _digest(tensor: Tensor) -> str:
    plain = tensor.detach().to("cpu").contiguous()
    content = plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode() + content).hexdigest()


def _laid_out_(model: nn.Module) -> nn.Module:
    """The tensors as loading will lay them out: one number behind the other."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.layout == torch.strided and not tensor.is_contiguous():
            tensor.data = tensor.data.contiguous()
    return model.eval()
