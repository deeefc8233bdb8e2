"""Write a network for others: a `.pt2` that torch loads without Shoal, or ONNX. Each is loaded again and compared."""

import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from shoal.batches import Batch, call
from shoal.errors import ExportError, ShoalError
from shoal.files.writing import write_atomically
from shoal.measure.classes import classes_last
from shoal.outputs import distance, read_outputs, shown
from shoal.preserve import evaluating
from shoal.replace.kv_cache import without_kv_cache
from shoal.store.save import copy_on_cpu

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_WHOLE = "The other files of the folder are whole."


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its outputs are from the network's on what it was checked on.

    Args:
        path: of the file or folder.
        max_abs_diff: the largest deviation of an output.
        top1_agreement: how often both name the same class, or at a position the same class or next token.
        n: how many samples, or tokens, that is of.
        dynamic_batch: whether it takes any batch size.
        unit: what `n` counts.
    """

    path: Path
    max_abs_diff: float
    top1_agreement: float
    n: int
    dynamic_batch: bool
    unit: Literal["samples", "tokens"] = "samples"


def export_program(model: nn.Module, batch: Batch, path: Path) -> Exported:
    """A `.pt2` (torch.export), with a free batch size where the network allows it. It holds no pickle.

    Raises:
        ExportError: the network cannot be exported, or the file computes something else; says what torch said.
    """
    plain, inputs = copy_on_cpu(model), batch.to("cpu")
    program, dynamic = _program(plain, inputs)
    program._example_inputs = None  # would be stored as a pickle

    def check(temporary: Path) -> Exported:
        with temporary.open("rb") as file:
            loaded = torch.export.load(file).module()
        return _compared(plain, inputs, path, dynamic, lambda part: loaded(*part.args, **part.kwargs))

    return _write_checked(path, "torch.export", lambda temporary: _save_program(program, temporary), check)


def export_onnx(
    model: nn.Module, batch: Batch, path: Path, *, opset: int | None = None, dynamic: bool = True
) -> Exported:
    """An ONNX file, checked with onnxruntime.

    Args:
        model: stays as it is.
        batch: what it is exported and checked with.
        path: of the file.
        opset: version of the operators; by default the one that torch prefers.
        dynamic: leave the batch size free, where the network allows it.

    Raises:
        ExportError: onnx is not installed, the network cannot be exported, or not with this version of the operators,
            or the file computes something else.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"ONNX needs {error.name}", "pip install 'shoal[onnx]'") from error
    plain, inputs = copy_on_cpu(model), batch.to("cpu")
    program, dynamic = _program(plain, inputs, dynamic=dynamic)

    def write(temporary: Path) -> None:
        with _quiet():
            made = torch.onnx.export(program, dynamo=True, verbose=False, external_data=False, opset_version=opset)
            if made is None:
                raise ExportError("torch.onnx made nothing of this network", "Use the .pt2.")
            made.save(str(temporary))

    def check(temporary: Path) -> Exported:
        content = temporary.read_bytes()  # from memory: a session may keep a file open
        _check_opset(onnx.load_model_from_string(content), opset)
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_inputs()]

        def run(part: Batch) -> Any:
            feed = dict(zip(names, (tensor.numpy() for tensor in part.tensors), strict=True))
            return [torch.from_numpy(node) for node in session.run(None, feed)]

        return _compared(plain, inputs, path, dynamic, run)

    return _write_checked(path, "ONNX", write, check)


def _check_opset(document: Any, opset: int | None) -> None:
    """Refuse a file of another version than the one asked for: where torch cannot convert, it says nothing."""
    written = next((entry.version for entry in document.opset_import if entry.domain == ""), None)
    if opset is not None and written != opset:
        raise ExportError(
            f"the operators of this network cannot be written in version {opset}: torch made version {written}",
            "Leave the opset out, or give a version that this torch and this onnxscript know.",
        )


def _write_checked(path: Path, form: str, write: Callable[[Path], None], check: Callable[[Path], Exported]) -> Exported:
    """Write the file, load it and compare it before it is put in place, so that a wrong one never appears."""
    checked: list[Exported] = []

    def write_and_check(temporary: Path) -> None:
        try:
            write(temporary)
            checked.append(check(temporary))
        except (ShoalError, OSError):
            raise
        except Exception as error:
            raise ExportError(f"{form} cannot hold this network: {_first_line(error)}", _WHOLE) from error

    write_atomically(path, write_and_check)
    return checked[0]


def _program(model: nn.Module, batch: Batch, *, dynamic: bool = True) -> tuple[torch.export.ExportedProgram, bool]:
    """The exported program, with a free batch size if the network allows one, and whether it does.

    A decoder is exported without the cache that it would return for the next call: torch knows no such type.
    """
    failure: Exception | None = None
    for free in (True, False) if dynamic and batch.size > 1 else (False,):
        shapes = _free_batch(model, batch) if free else None
        try:
            with evaluating(model), without_kv_cache(model), _quiet():
                return torch.export.export(model, batch.args, batch.kwargs, dynamic_shapes=shapes), free
        except Exception as error:  # noqa: BLE001 - torch.export raises many types, each with its own text
            failure = failure or error
    raise ExportError(f"torch.export cannot export this network: {_first_line(failure)}", _WHOLE) from failure


def _free_batch(model: nn.Module, batch: Batch) -> Any:
    free = torch.export.Dim("batch", min=1)
    shapes = torch.export.ShapesCollection()
    for tensor in batch.tensors:
        shapes[tensor] = {0: free}
    return shapes.dynamic_shapes(model, batch.args, batch.kwargs)


def _save_program(program: torch.export.ExportedProgram, path: Path) -> None:
    # Into memory first: torch's writer raises where it cannot be caught when the disk is full.
    content = io.BytesIO()
    with _quiet():
        torch.export.save(program, content)
    path.write_bytes(content.getbuffer())


def _compared(model: nn.Module, batch: Batch, path: Path, dynamic: bool, run: Any) -> Exported:
    """Every tensor that the network returns, against what the file returns; ONNX knows them by their order alone."""
    parts = [batch, batch.take(1)] if dynamic else [batch]
    largest, agreed, counted, n = 0.0, 0.0, 0, 0
    for part in parts:
        with evaluating(model):
            expected = read_outputs(call(model, part)).tensors
            actual = list(read_outputs(run(part)).tensors.values())
        if len(actual) != len(expected):
            raise ExportError(f"'{path}' returns {len(actual)} tensors, expected {len(expected)}", _WHOLE)
        for (name, tensor), result in zip(expected.items(), actual, strict=True):
            off = _deviation(path, name, tensor, result)
            largest = max(largest, off)
        main, result = next(iter(zip(expected.values(), actual, strict=True)))
        if main.is_floating_point() and main.dim() > 1 and len(main) == part.size:
            # At every position: the largest score of all positions together changes with any rounding.
            same = classes_last(result).argmax(-1) == classes_last(main).argmax(-1)
            agreed += part.size * float(same.float().mean())
            counted += part.size
        n += part.size
    return Exported(path, largest, agreed / counted if counted else float(largest == 0), n, dynamic)


def _deviation(path: Path, name: str, expected: Tensor, actual: Tensor) -> float:
    if actual.shape != expected.shape:
        raise ExportError(
            f"'{path}' returns {shown(name)} in shape {tuple(actual.shape)}, expected {tuple(expected.shape)}", _WHOLE
        )
    off = distance(expected, actual).largest
    finite = expected[torch.isfinite(expected)].abs() if expected.is_floating_point() else expected.new_zeros(0)
    scale = max(float(finite.max()) if finite.numel() else 0.0, 1.0)
    if off > 1e-3 * scale:
        raise ExportError(
            f"'{path}' computes something else: its outputs are up to {off:.3g} away (largest output {scale:.3g})"
            f"{f', in {shown(name)}' if name else ''}",
            "Do not use this file; please report the network.",
        )
    return off


def _first_line(error: BaseException | None) -> str:
    # torch.onnx wraps the operator that it lacks in advice, coloured for a terminal.
    while error is not None and type(error).__module__.startswith("torch.onnx") and error.__cause__ is not None:
        error = error.__cause__
    lines = _COLOURS.sub("", str(error or "")).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's own chatter about exporting off the user's terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
