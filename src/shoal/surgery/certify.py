"""Are two networks the same function, and on what evidence?"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain as chained
from typing import Any

import torch
from torch import Tensor, nn

from shoal.alignment import in_aligned_memory
from shoal.batches import Batch, batches, call, check_logits, device_of, logits_of
from shoal.blocks import Anatomy, dissect
from shoal.errors import DataError, UsageError
from shoal.preserve import evaluating
from shoal.record import Certificate
from shoal.surgery.canonical import Canonical

_STANDING_PREMISES = (
    "eval mode, without gradients; dropout and batch-norm statistics stand still",
    "finite weights (checked) and finite activations; -0 counts as +0",
)


def certify(a: nn.Module, b: nn.Module, loader: Iterable[Any], *, tolerance: float | None = None) -> Certificate:
    """Compare two networks by construction and on data.

    Args:
        a: the original.
        b: the other network; both are left as they were.
        loader: mini-batches as both networks take them; labels are not needed.
        tolerance: the largest absolute deviation that still counts as equal; by default 1e-5 of the largest output
            of `a` on the data.

    Returns:
        *identical* if both networks do the same computation once statically zero branches and idle operations are
        taken away (premises listed) and every output on the data is bitwise the same; *equal* if every output agrees
        within the tolerance; else *different*, with the largest deviation and where it is.

    Raises:
        DataError: no data, or outputs of different shapes.
        NonFiniteError: NaN or Inf in weights or outputs.
    """
    if tolerance is not None and not 0 <= tolerance < float("inf"):
        raise UsageError(f"the tolerance is {tolerance}, expected a finite number >= 0", "Leave it out for 1e-5.")
    stream = iter(batches(loader, device_of(a)))
    first = next(stream, None)
    if first is None:
        raise DataError("there is no data to certify on", "Give a loader with at least one mini-batch.")
    example = first.take(2)
    anatomies = dissect(a, example), dissect(b, example)
    same, obstacle, premises, where = _by_construction(*anatomies)
    deviation = _on_data(a, b, chained([first], stream))
    limit = tolerance if tolerance is not None else 1e-5 * deviation.largest_output
    verdict = "different"
    if same and deviation.bitwise:
        verdict = "identical"
    elif deviation.largest <= limit:
        verdict = "equal"
    return Certificate.model_validate(
        {
            "verdict": verdict,
            "max_abs_diff": deviation.largest,
            "where": _where(deviation, where) if deviation.largest > 0 else None,
            "tolerance": limit,
            "n": deviation.n,
            "premises": premises if verdict == "identical" else [],
            "bitwise": deviation.bitwise,
            "why_not_identical": None if verdict == "identical" else _why_not(same, obstacle, where),
        }
    )


def _why_not(same: bool, obstacle: str | None, where: str | None) -> str:
    if obstacle is not None:
        return f"nothing can be shown by construction: {obstacle}"
    if same:
        return "the same computation by construction, but the outputs on this machine are not bitwise the same"
    return "the computations differ" + (f", first in '{where}'" if where else "")


@dataclass(frozen=True)
class _Deviation:
    largest: float
    sample: int
    place: tuple[int, ...]
    largest_output: float
    bitwise: bool
    n: int


def _by_construction(a: Anatomy, b: Anatomy) -> tuple[bool, str | None, list[str], str | None]:
    """Whether the canonical forms agree, what stood in the way, the premises, and the first block that differs."""
    one, other = Canonical(a), Canonical(b)
    obstacle = one.obstacle() or other.obstacle()
    same = one.output == other.output and obstacle is None
    shapes = [list(a.trace.values[value].shape[1:]) for value in a.trace.inputs]
    standing = (*_STANDING_PREMISES, f"inputs of the shapes traced: {', '.join(map(str, shapes))}")
    premises = [*dict.fromkeys((*one.premises, *other.premises)), *standing]
    return same, obstacle, premises, None if same else _first_difference(a, one, other)


def _first_difference(a: Anatomy, one: Canonical, other: Canonical) -> str | None:
    known = set(other.digests.values())
    for path, block in a.calls.items():
        if path and not any(one.of(value) in known for value in block.outputs):
            return path
    return None


def _on_data(a: nn.Module, b: nn.Module, stream: Iterable[Batch]) -> _Deviation:
    largest, sample, largest_output, bitwise, n = 0.0, 0, 0.0, True, 0
    place: tuple[int, ...] = ()
    with evaluating(a), evaluating(b), in_aligned_memory(a), in_aligned_memory(b):
        for batch in stream:
            left, right = logits_of(call(a, batch)), logits_of(call(b, batch))
            _check_shapes(left, right)
            check_logits(left)
            check_logits(right)
            difference = (left.double() - right.double()).abs()
            bitwise = bitwise and torch.equal(left, right)
            largest_output = max(largest_output, float(left.abs().max()))
            if float(difference.max()) > largest:
                flat = int(difference.argmax())
                position = [int(one) for one in torch.unravel_index(torch.tensor(flat), difference.shape)]
                largest, sample, place = float(difference.max()), n + position[0], tuple(position[1:])
            n += batch.size
    return _Deviation(largest, sample, place, largest_output, bitwise, n)


def _check_shapes(left: Tensor, right: Tensor) -> None:
    if left.shape != right.shape:
        raise DataError(
            f"the networks return outputs of shape {tuple(left.shape)} and {tuple(right.shape)}",
            "Only networks with the same outputs can be compared.",
        )


def _where(deviation: _Deviation, block: str | None) -> str:
    output = ",".join(map(str, deviation.place))
    first = f"; the computations part in '{block}'" if block else ""
    return f"sample {deviation.sample}, output {output or '-'}{first}"
