"""Are two networks the same function, and on what evidence? Which blocks are identities by their weights alone?"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain as chained
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shoal.alignment import in_aligned_memory
from shoal.arguments import real_number
from shoal.batches import Batch, batches, call, device_of
from shoal.blocks import BlockGraph, analyze
from shoal.blocks.sample_counts import ShapeRuns
from shoal.blocks.trace import trace_run
from shoal.blocks.zero_analysis import zero_values
from shoal.errors import DataError, UsageError, naming_memory_shortage
from shoal.intake import check_network
from shoal.outputs import Outputs, as_names, check_numbers, chosen_outputs, distance, mismatch, read_outputs, shown
from shoal.preserve import evaluating
from shoal.record import Certificate
from shoal.surgery.canonical_form import CanonicalForm

_STANDING_ASSUMPTIONS = (
    "eval mode, without gradients; dropout and batch-norm statistics stand still",
    "finite weights (checked) and finite activations; -0 counts as +0",
)
_NO_TOLERANCE = "Leave it out for 1e-5 of the largest output."
# Numbers of samples that the proof is tried for, on shapes alone.
_COUNTS = (3, 33, 1000)


@naming_memory_shortage()
def certify(
    a: nn.Module,
    b: nn.Module,
    loader: Iterable[Any],
    *,
    tolerance: float | None = None,
    output: str | Sequence[str] | None = None,
) -> Certificate:
    """Compare two networks by construction and on data: every tensor that they return, not the first one alone.

    Args:
        a: the original.
        b: the other network; both are left as they were.
        loader: mini-batches as both networks take them; labels are not needed.
        tolerance: the largest absolute deviation that still counts as equal; by default 1e-5 of the largest output
            of `a` on the data, for each tensor by itself. Indices, masks and numbers must be the same.
        output: names of outputs to look at on the data (`logits`, `[1]`, `aux`); all by default. A cache that is
            returned for the next call (`past_key_values`) is no output.

    Returns:
        *identical* if both networks do the same computation once statically zero branches and idle operations are
        taken away (premises listed) and every output on the data is bitwise the same; *equal* if every output agrees
        within the tolerance; else *different*, with the largest deviation and where it is.

    Raises:
        DataError: no data, or outputs of different structure, shapes or dtypes.
        UsageError: a negative tolerance, or an unknown output.
        NonFiniteError: NaN or Inf in weights or outputs.
    """
    check_network(a, "a")
    check_network(b, "b")
    if tolerance is not None and not 0 <= real_number("the tolerance", tolerance, _NO_TOLERANCE) < float("inf"):
        raise UsageError(f"the tolerance is {tolerance}, expected a finite number >= 0", _NO_TOLERANCE)
    names = as_names(output)
    stream = iter(batches(loader, device_of(a)))
    first = next(stream, None)
    if first is None:
        raise DataError("there is no data to certify on", "Give a loader with at least one mini-batch.")
    example = first.take(2)
    graphs = analyze(a, example), analyze(b, example)
    proof = _by_construction(*graphs)
    if proof.same:
        proof = _with_other_counts(proof, graphs, example)
    deviations, samples = _on_data(a, b, chained([first], stream), names)
    return _certificate(proof, deviations, samples, tolerance)


class ConstructionProof(NamedTuple):
    """What the canonical forms of two networks show.

    Args:
        same: whether they agree.
        obstacle: why nothing can be shown; None where something can.
        assumptions: under which they agree.
        where: the first block that differs.
    """

    same: bool
    obstacle: str | None
    assumptions: list[str]
    where: str | None

    @property
    def not_identical_reason(self) -> str:
        """Why the networks are not certified identical, if they are not."""
        if self.obstacle is not None:
            return f"nothing can be shown by construction: {self.obstacle}"
        if self.same:
            return "the same computation by construction, but the outputs on this machine are not bitwise the same"
        return "the computations differ" + (f", first in '{self.where}'" if self.where else "")


def _certificate(
    proof: ConstructionProof, deviations: dict[str, "OutputDeviation"], samples: int, tolerance: float | None
) -> Certificate:
    # Each output has its own scale: a large one must not hide what happens to a small one.
    name, worst = max(deviations.items(), key=lambda item: item[1].excess(tolerance))
    bitwise = all(deviation.bitwise for deviation in deviations.values())
    verdict = "different"
    if proof.same and bitwise:
        verdict = "identical"
    elif all(deviation.largest <= deviation.limit(tolerance) for deviation in deviations.values()):
        verdict = "equal"
    return Certificate.model_validate(
        {
            "verdict": verdict,
            "max_abs_diff": worst.largest,
            "where": _where(name, worst, proof.where) if worst.largest > 0 else None,
            "tolerance": worst.limit(tolerance),
            "n": samples,
            "premises": proof.assumptions if verdict == "identical" else [],
            "bitwise": bitwise,
            "why_not_identical": None if verdict == "identical" else proof.not_identical_reason,
            "outputs": list(deviations) if list(deviations) != [""] else [],
        }
    )


@dataclass
class OutputDeviation:
    """Of one tensor of the outputs, over all mini-batches so far: the largest, where, and the largest output."""

    largest: float = 0.0
    sample: int = 0
    place: tuple[int, ...] = ()
    scale: float = 0.0
    bitwise: bool = True

    def take_in(self, expected: Tensor, actual: Tensor, samples: int) -> None:
        """One mini-batch, which `samples` were before."""
        off = distance(expected, actual)
        self.bitwise = self.bitwise and off.bitwise
        finite = expected[torch.isfinite(expected)].abs() if expected.is_floating_point() else expected.new_zeros(0)
        self.scale = max(self.scale, float(finite.max()) if finite.numel() else 0.0)
        if off.largest > self.largest:
            self.largest = off.largest
            self.sample, self.place = samples + (off.place[0] if off.place else 0), off.place[1:]

    def limit(self, tolerance: float | None) -> float:
        """What still counts as equal."""
        return tolerance if tolerance is not None else 1e-5 * self.scale

    def excess(self, tolerance: float | None) -> float:
        """The deviation as a multiple of the limit."""
        limit = self.limit(tolerance)
        if self.largest == 0:
            return 0.0
        return self.largest / limit if limit > 0 else float("inf")


def _with_run(graph: BlockGraph, example: Batch) -> BlockGraph:
    """The same network, run on another mini-batch."""
    return replace(graph, trace=trace_run(graph.model, example))


def _with_other_counts(
    proof: ConstructionProof, graphs: tuple[BlockGraph, BlockGraph], example: Batch
) -> ConstructionProof:
    """The proof for other numbers of samples too, and only if no code decides by them."""
    counts = [example.size]
    if example.size > 1:
        alone = _by_construction(*(_with_run(graph, example.take(1)) for graph in graphs))
        proof = alone._replace(assumptions=proof.assumptions)
        counts = [1, example.size]
    runs = [ShapeRuns(graph.model, example) for graph in graphs]
    obstacle = next((decision for run in runs if (decision := run.decision()) is not None), None)
    if obstacle is not None:
        return proof._replace(same=False, obstacle=obstacle)
    for count in _COUNTS:
        if not proof.same:
            break
        traces = [trace for run in runs if (trace := run.trace(count)) is not None]
        if len(traces) == len(graphs):
            counts.append(count)
            other = _by_construction(*(replace(graph, trace=run) for graph, run in zip(graphs, traces, strict=True)))
            if not other.same:
                reason = other.obstacle or "the computations differ"
                proof = proof._replace(same=False, obstacle=f"of {count} samples at a time, {reason}")
    numbers = ", ".join(map(str, counts))
    return proof._replace(assumptions=[*proof.assumptions, f"mini-batches of so many samples: {numbers}"])


def _by_construction(a: BlockGraph, b: BlockGraph) -> ConstructionProof:
    """Compare the canonical forms of two networks."""
    form_a, form_b = CanonicalForm(a), CanonicalForm(b)
    obstacle = form_a.unprovable_reason() or form_b.unprovable_reason()
    same = form_a.output == form_b.output and obstacle is None
    shapes = [list(a.trace.values[value].shape[1:]) for value in a.trace.inputs]
    standing = (*_STANDING_ASSUMPTIONS, f"inputs of the shapes traced: {', '.join(map(str, shapes))}")
    assumptions = [*dict.fromkeys((*form_a.assumptions, *form_b.assumptions)), *standing]
    return ConstructionProof(same, obstacle, assumptions, None if same else _first_difference(a, form_a, form_b))


def _first_difference(a: BlockGraph, form_a: CanonicalForm, form_b: CanonicalForm) -> str | None:
    digests = set(form_b.digests.values())
    for path, block in a.calls.items():
        if path and not any(form_a.digest(value) in digests for value in block.outputs):
            return path
    return None


def _on_data(
    a: nn.Module, b: nn.Module, stream: Iterable[Batch], names: tuple[str, ...]
) -> tuple[dict[str, OutputDeviation], int]:
    """How far every tensor of the outputs is off, by name, and the number of samples."""
    deviations: dict[str, OutputDeviation] = {}
    samples = 0
    with evaluating(a), evaluating(b), in_aligned_memory(a), in_aligned_memory(b):
        for batch in stream:
            expected, actual = read_outputs(call(a, batch)), read_outputs(call(b, batch))
            _check_pair(expected, actual)
            check_numbers(expected.tensors)
            check_numbers(actual.tensors)
            for name, tensor in chosen_outputs(expected, names).items():
                deviations.setdefault(name, OutputDeviation()).take_in(tensor, actual.tensors[name], samples)
            samples += batch.size
    return deviations, samples


def _check_pair(first: Outputs, second: Outputs) -> None:
    if not first.tensors:
        raise DataError("the networks return no tensor", "There is nothing to compare.")
    reason = mismatch(first, second)
    if reason is None:
        differing = next((name for name in first.plain if first.plain[name] != second.plain[name]), None)
        if differing is not None:
            value_a, value_b = first.plain[differing], second.plain[differing]
            reason = f"{shown(differing)} is {value_a!r} of one network and {value_b!r} of the other"
    if reason is not None:
        raise DataError(
            f"the outputs cannot be laid side by side: {reason}", "Only networks with the same outputs can be compared."
        )


def _where(name: str, deviation: OutputDeviation, block: str | None) -> str:
    place = ",".join(map(str, deviation.place))
    which = f" of '{name}'" if name else ""
    first = f"; the computations part in '{block}'" if block else ""
    return f"sample {deviation.sample}, output {place or '-'}{which}{first}"


def strict_identities(graph: BlockGraph) -> dict[str, str]:
    """The removable blocks that compute nothing but their shortcut, each with the proof as text."""
    zeros = zero_values(graph.trace, graph.model)
    proofs = {}
    for block in graph.chain.removable:
        reasons = [zeros.get(addition.branch) for addition in graph.additions[block.path]]
        if reasons and all(reason is not None for reason in reasons):
            proofs[block.path] = "; ".join(dict.fromkeys(str(reason) for reason in reasons))
    return proofs
