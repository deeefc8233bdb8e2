"""Students learn from what the network answers with one of them in place, not from the ends of their spans alone.

Two students that miss the end of a span by as much may change the answers by very different amounts. So the part of
the original behind a span runs with a student in it, frozen, and passes the gradient of the damage back to the student.
Each student takes such a step in turn, every few steps, since one costs about as much as a run of the original.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from shoal.batches import Batch
from shoal.blocks import BlockGraph
from shoal.blocks.prefix_cache import Forward, PrefixCache
from shoal.replace.student_trainer import StudentTrainer, adapted

# Every student looks at the answers in one of so many steps.
TURNS = 4

AnswerDamage = Callable[[Any, Any, Batch], Tensor]


class Answers:
    """The answers of the original on one mini-batch, and with a student in place.

    Args:
        graph: of the original.
        damage: how far answers are from the original's, for each sample; differentiable.
    """

    def __init__(self, graph: BlockGraph, damage: AnswerDamage) -> None:
        self.graph, self.damage = graph, damage
        self.prefix = PrefixCache(graph)
        self.original: Any = None
        self.batch = Batch()

    def record(self, batch: Batch) -> None:
        """Run the original, once."""
        self.original, self.batch = self.prefix.record(batch), batch

    def loss(self, student: StudentTrainer) -> Tensor:
        """The mean damage with the student in place of its span."""
        output = self.prefix.run_from(self.prefix.segment_of(student.spec.span.paths[0]), self._forwards(student))
        return self.damage(self.original, output, self.batch).mean()

    def is_turn_of(self, number: int, step: int) -> bool:
        """Whether the student of this number learns from the answers in this step."""
        return (number - step) % TURNS == 0

    def _forwards(self, student: StudentTrainer) -> dict[nn.Module, Forward]:
        """The student at the first place of its span, in its own precision; the others pass their input through."""
        like = next(student.module.parameters())

        def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            others = tuple(adapted(value, like) for value in args)
            named = {key: adapted(value, like) for key, value in kwargs.items()}
            # A copy: what follows may work in place, and the student needs its own output for the gradient.
            output: Tensor = student.module(x.to(like.dtype), *others, **named).to(x.dtype).clone()
            return output

        span = student.spec.span
        functions: list[Forward] = [run, *[_pass_through] * (len(span.paths) - 1)]
        return {
            self.graph.model.get_submodule(path): output_format.wrap_forward(function)
            for path, output_format, function in zip(span.paths, span.output_formats, functions, strict=True)
        }


def _pass_through(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return x
