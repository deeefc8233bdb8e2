"""Blocks that teacher and student both have: where their features can be held against each other."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from shoal.batches import Batch
from shoal.blocks import dissect
from shoal.errors import ShoalError
from shoal.plan import Replace
from shoal.preserve import evaluating
from shoal.recover.form import ask, suited
from shoal.replace import Line, line_of


def shared_places(
    teacher: nn.Module, student: nn.Module, example: Batch, replaced: Sequence[Replace] = ()
) -> dict[str, str]:
    """Of the teacher's blocks (layers, where it has none) that the student answers for: where in the student, in order.

    A stand-in answers for the last block of its span. Any other block was kept: the same class with parameters of the
    same names at the same path (fewer of them inside will do). Features are of the same shape. A network that cannot be
    traced has none, and is distilled by its answers alone.

    Args:
        teacher: left as it was.
        student: left as it was.
        example: a mini-batch to run both on.
        replaced: of the student's plan.
    """
    try:
        line = line_of(dissect(copy.deepcopy(teacher).eval(), suited(teacher, example)))
        places = _places(teacher, student, line, replaced)
        with evaluating(teacher), evaluating(student):
            with listening(teacher, list(places)) as wanted:
                ask(teacher, example)
            with listening(student, list(places.values())) as own:
                ask(student, example)
    except ShoalError:
        return {}
    return {
        path: place
        for path, place in places.items()
        if path in wanted and place in own and wanted[path].shape == own[place].shape
    }


def _places(teacher: nn.Module, student: nn.Module, line: Line, replaced: Sequence[Replace]) -> dict[str, str]:
    """In the line's order; of a span only the end."""
    spans = {path: one for one in replaced for path in one.paths}
    places: dict[str, str] = {}
    for step in line.steps:
        end = step.paths[-1]
        if end in spans:
            if end == spans[end].paths[-1]:
                places[end] = spans[end].paths[0]
        elif all(_kept(teacher, student, path) for path in step.paths):
            places[end] = end
    return places


def _kept(teacher: nn.Module, student: nn.Module, path: str) -> bool:
    try:
        one, other = teacher.get_submodule(path), student.get_submodule(path)
    except AttributeError:
        return False
    return type(one) is type(other) and _names(one) == _names(other)


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


@contextmanager
def listening(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What the modules at these paths return, by path, as the network runs; no hook stays behind.

    Copies are kept: a layer behind may work in place.
    """
    heard: dict[str, Tensor] = {}

    def keep(path: str) -> object:
        def hook(module: nn.Module, args: object, output: object) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, Tensor):
                heard[path] = first.clone()

        return hook

    handles = [model.get_submodule(path).register_forward_hook(keep(path)) for path in paths]  # type: ignore[arg-type]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
