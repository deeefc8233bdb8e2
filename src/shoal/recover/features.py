"""Blocks that teacher and student both have: where their features can be held against each other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import ShoalError
from shoal.plan import Replace
from shoal.preserve import copied, evaluating
from shoal.recover.trainable_format import forward_in_format, match_dtype
from shoal.replace import build_segments


def matching_blocks(
    teacher: nn.Module, student: nn.Module, example: Batch, replaced: Sequence[Replace] = ()
) -> list[str]:
    """The paths of the teacher's blocks (layers, where it has none) that the student has kept, in order.

    Kept means: the same class with parameters of the same names at the same path (fewer of them inside will do), and
    features of the same shape. What stands for a span is not among them: a student may be a copy of the block it stands
    at, and learns best when it is left free (held against the end of its span it came out slightly further off). A
    network that cannot be traced has none, and is distilled by its answers alone.

    Args:
        teacher: left as it was.
        student: left as it was.
        example: a mini-batch to run both on.
        replaced: of the student's plan.
    """
    spans = {path for one in replaced for path in one.paths}
    try:
        line = build_segments(analyze(copied(teacher).eval(), match_dtype(teacher, example)))
        whole = [step.paths for step in line.steps if spans.isdisjoint(step.paths)]
        kept = [paths[-1] for paths in whole if all(_kept(teacher, student, path) for path in paths)]
        with evaluating(teacher), evaluating(student):
            with capture_outputs(teacher, kept) as wanted:
                forward_in_format(teacher, example)
            with capture_outputs(student, kept) as own:
                forward_in_format(student, example)
    except ShoalError:
        return []
    return [path for path in kept if path in wanted and path in own and wanted[path].shape == own[path].shape]


def _kept(teacher: nn.Module, student: nn.Module, path: str) -> bool:
    try:
        one, other = teacher.get_submodule(path), student.get_submodule(path)
    except AttributeError:
        return False
    return type(one) is type(other) and _names(one) == _names(other)


def _names(module: nn.Module) -> list[str]:
    return [name for name, _ in module.named_parameters()]


@contextmanager
def capture_outputs(model: nn.Module, paths: Sequence[str]) -> Iterator[dict[str, Tensor]]:
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
