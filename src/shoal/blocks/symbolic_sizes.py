"""Symbolic sizes: numbers in the code of a block that follow the sizes of its input, found by comparing runs.

A trace holds the numbers that Python computed for one input: `x[:, -7:]`, `interpolate(size=(14, 14))`. Where runs on
other inputs do the same operations with other numbers, each number that is a simple function of a size of the block's
inputs, in every run, is written down as that function.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from shoal.blocks.template import Size, leaves, rebuilt
from shoal.blocks.trace import ModuleCall, Trace

_IDLE_AT_TIMES = frozenset(["contiguous", "to", "type", "type_as", "float", "half", "double", "bfloat16"])
_DIVISORS = (1, 2, 4, 8, 16, 32)


def following_sizes(run: Trace, calls: Sequence[ModuleCall], others: Sequence[Trace]) -> Trace:
    """The same run, with numbers in these calls that follow the sizes of the call's inputs written as `Size`.

    A run in which a call ran other operations says nothing of it.

    Args:
        run: the trace.
        calls: of modules that are called once.
        others: traces of the same network on inputs of other sizes.
    """
    ops, changed = list(run.ops), list(run.calls)
    for call in calls:
        alike = [(trace, same) for trace in others if (same := _same_call(run, call, trace)) is not None]
        if not alike:
            continue
        terms = list(_terms([(run, call), *alike]))
        for number, index in enumerate(_op_indices(run, call)):
            there = [trace.ops[_op_indices(trace, same)[number]] for trace, same in alike]
            args, kwargs = _symbolic([(op.args, op.kwargs) for op in (run.ops[index], *there)], terms)
            ops[index] = replace(run.ops[index], args=args, kwargs=kwargs)
        for number, inner in enumerate(run.calls_in(call)):
            moved = [trace.calls_in(same)[number] for trace, same in alike]
            args, kwargs = _symbolic([(inner_call.args, inner_call.kwargs) for inner_call in (inner, *moved)], terms)
            changed[inner.index] = replace(inner, args=args, kwargs=kwargs)
    return replace(run, ops=ops, calls=changed)


def _same_call(run: Trace, call: ModuleCall, second_run: Trace) -> ModuleCall | None:
    """The call of the same module in another run, if it ran the same operations in the same modules."""
    calls = second_run.calls_of(call.module)
    if len(calls) != 1 or len(calls[0].inputs) != len(call.inputs):
        return None
    there = calls[0]
    return there if _operations_run(run, call) == _operations_run(second_run, there) else None


def _operations_run(run: Trace, call: ModuleCall) -> tuple[list[Any], list[str]]:
    ops = (run.ops[index] for index in _op_indices(run, call))
    return [(op.name, op.call - call.index) for op in ops], [inner.path for inner in run.calls_in(call)]


def _op_indices(run: Trace, call: ModuleCall) -> list[int]:
    """The operations of a call, except those that may return their input unchanged."""
    return [index for index in range(call.start, call.stop) if run.ops[index].name not in _IDLE_AT_TIMES]


_Term = tuple[int, tuple[int, ...], list[int]]


def _terms(runs: Sequence[tuple[Trace, ModuleCall]]) -> Iterator[_Term]:
    """Every size of an input of the block, and the products of two: (value, axes, its size in each run)."""
    for place, value in enumerate(runs[0][1].inputs):
        shapes = [run.values[call.inputs[place]].shape for run, call in runs]
        if len({len(shape) for shape in shapes}) > 1:
            continue
        axes = range(len(shapes[0]))
        for chosen in [*((axis,) for axis in axes), *combinations(axes, 2)]:
            sizes = [_product(shape, chosen) for shape in shapes]
            if len(set(sizes)) > 1:
                yield value, chosen, sizes


def _product(shape: tuple[int, ...], axes: Sequence[int]) -> int:
    product = 1
    for axis in axes:
        product *= shape[axis]
    return product


def _symbolic(templates: Sequence[Any], terms: Sequence[_Term]) -> Any:
    """The first of several templates of one call, with numbers that differ between them written as sizes."""
    rows = [list(leaves(template)) for template in templates]
    if len({len(row) for row in rows}) > 1:
        return templates[0]
    numbers = iter(zip(*rows, strict=True))

    def change(leaf: Any) -> Any:
        observed = next(numbers)
        if any(type(number) is not int for number in observed) or len(set(observed)) == 1:
            return leaf
        return _fit_size(list(observed), terms) or leaf

    return rebuilt(templates[0], change)


def _fit_size(observed: list[int], terms: Sequence[_Term]) -> Size | None:
    """The simplest size that equals these numbers in all runs."""
    for over in _DIVISORS:
        for value, axes, sizes in terms:
            # Two free numbers (the offset, what is left by the division) need three sizes to be told apart.
            if over > 1 and len(set(sizes)) < 3:
                continue
            for times in _factors(observed, sizes, over):
                for rest in range(over):
                    plus = observed[0] * over - times * sizes[0] + rest
                    candidate = Size(value, axes, times, plus, over)
                    if [candidate.of_product(size) for size in sizes] == observed:
                        return candidate
    return None


def _factors(observed: list[int], sizes: list[int], over: int) -> tuple[int, ...]:
    whole = observed[0] // sizes[0] if over == 1 and sizes[0] else 0
    return (1, -1, whole) if abs(whole) > 1 else (1, -1)
