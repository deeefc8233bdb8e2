"""What a task is: how outputs are read, which metrics tell how good a network is, and how it is recognised."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from torch import Tensor, nn

from shoal.batches import Batch
from shoal.errors import ShoalError, UsageError, check_memory
from shoal.measure.output_reading import Expectation
from shoal.outputs import Outputs, read_outputs, shown

# What one sample adds to a metric: numbers, or whatever `Metric.value` makes a figure of.
Row = Any
Better = Literal["higher", "lower"]
Against = Literal["labels", "original", "either"]


@dataclass(frozen=True)
class Reference:
    """What outputs are compared with: the labels of a mini-batch, or the original's own output.

    Args:
        against: which of the two.
        value: labels as the loader gave them, or what the original returned.
    """

    against: Literal["labels", "original"]
    value: Any


@dataclass(frozen=True)
class Metric:
    """A figure over samples; its interval is a bootstrap by sample.

    Args:
        name: as a key: `miou`.
        label: for people: `mIoU`.
        rows: what each sample adds: `rows(output, reference, batch)`, one row a sample, in order.
        value: the figure of rows; of any resampling of them too.
        unit: `%` (values are fractions then), `dB`, or empty.
        better: which way is better.
        against: `labels` for a metric that needs labels, `original` for one that compares with the original's output,
            `either` for one that takes labels where they fit.
        fits: whether labels are such that the metric can use them, `fits(output, labels)`.
        applies: whether outputs are such that the metric can look at them, `applies(output)`; else it is left out.
        perfect: the figure of a network that answers exactly as the reference says; None where there is none.
        respond: what to ask the network, `respond(model, batch)`; by default its forward. Generation is another.
        prepare: changes all rows of a network at once before they are resampled, where one sample's row depends on
            other samples, as the nearest neighbour does.
        groups: the name of each sample's group, for figures by group.
        grouped_by: what the groups are: `timestep`.
        bounded: whether each row moves the figure by at most 1 / n, as a share of right answers does: without any
            difference between two networks the interval is then that of the rule of three, not of zero width.
        outputs: names of those that `output` is about, as the user named them; all where there are none. A metric with
            `respond` gets what that returns.
        chance: against labels the figure of a network that knows nothing, such as an R² of 0; where the original has
            none better, the record says so. None where it hangs on the data, or there is none.
    """

    name: str
    label: str
    rows: Callable[[Any, Reference, Batch], Sequence[Row]]
    value: Callable[[Sequence[Row]], float]
    unit: str = ""
    better: Better = "higher"
    against: Against = "either"
    fits: Callable[[Any, Any], bool] = lambda output, labels: True
    applies: Callable[[Any], bool] = lambda output: True
    perfect: float | None = None
    respond: Callable[[nn.Module, Batch], Any] | None = None
    prepare: Callable[[Sequence[Row]], Sequence[Row]] | None = None
    groups: Callable[[Batch], Sequence[str]] | None = None
    grouped_by: str = "group"
    bounded: bool = False
    outputs: tuple[str, ...] = ()
    chance: float | None = None

    def __post_init__(self) -> None:
        owner = f"the metric {self.label or self.name}"
        _check_fields(self, owner, ("name", "label"), ("rows", "value", "fits", "applies"), _METRIC_OPTIONS)
        for field, allowed in (("better", Better), ("against", Against)):
            if getattr(self, field) not in get_args(allowed):
                raise _wrong_field(owner, field, getattr(self, field), " or ".join(map(repr, get_args(allowed))))


@dataclass(frozen=True)
class Task:
    """What a network is for.

    Args:
        name: as `--task` takes it.
        metrics: those that apply to the data at hand are reported; the first that has a drop decides about `MaxDrop`.
        expectation: how outputs of real numbers are read; None: as labels and the network's class tell.
        decides: whether the expectation also holds where the task was recognised, not asked for.
        outputs: names of the outputs that count where the user names none and the network returns them.
        recognize: the reason why a network does this task, from the network, its output and the labels; else None.
        dense: a class for the network to be of while it is looked at, whose forward returns what its usual output is
            selected from; None where the usual output is looked at.
        obstacle: why a network cannot do this task, `obstacle(model, tensors)` of the outputs of real numbers that
            count, by name; None where it can. Asked where the user names the task.
        annotation_fault: why labels that make no tensor cannot be used, `annotation_fault(annotations)`; None where
            they can.
    """

    name: str
    metrics: tuple[Metric, ...] = ()
    expectation: Expectation | None = None
    decides: bool = False
    outputs: tuple[str, ...] = ()
    recognize: Callable[[nn.Module, Outputs, Tensor | None], str | None] = lambda model, outputs, labels: None
    dense: Callable[[nn.Module], type[nn.Module] | None] = lambda model: None
    obstacle: Callable[[nn.Module, Mapping[str, Tensor]], str | None] = lambda model, tensors: None
    annotation_fault: Callable[[Sequence[Any]], str | None] = lambda annotations: None

    def __post_init__(self) -> None:
        owner = f"the task {self.name}"
        _check_fields(self, owner, ("name",), ("recognize", "dense", "obstacle", "annotation_fault"))
        metrics = self.metrics
        if not isinstance(metrics, Sequence) or not all(isinstance(metric, Metric) for metric in metrics):
            raise _wrong_field(owner, "metrics", metrics, "a tuple of metrics")
        if len({metric.name for metric in metrics}) < len(metrics):
            names = [metric.name for metric in metrics]
            raise _wrong_field(owner, "metrics", names, "metrics of different names")
        if self.expectation is not None and not isinstance(self.expectation, Expectation):
            raise _wrong_field(owner, "expectation", self.expectation, "an Expectation or None")

    def names(self, outputs: Outputs) -> tuple[str, ...]:
        """The outputs that count of those that a network returns; all of them where none is named here."""
        return tuple(name for name in self.outputs if name in outputs.tensors)

    def about(self, names: tuple[str, ...]) -> "Task":
        """The task, whose metrics look at the outputs of these names; at all that a network returns without any."""
        return replace(self, metrics=tuple(replace(metric, outputs=names) for metric in self.metrics))


_METRIC_OPTIONS = ("respond", "prepare", "groups")


def _check_fields(
    value: Any, owner: str, texts: Sequence[str], functions: Sequence[str], options: Sequence[str] = ()
) -> None:
    """Refuse fields that are of another type: texts are not empty, functions can be called, options also be None."""
    for name in texts:
        if not isinstance(text := getattr(value, name), str) or not text:
            raise _wrong_field(owner, name, text, "a text")
    for name in (*functions, *options):
        part = getattr(value, name)
        if not callable(part) and not (part is None and name in options):
            raise _wrong_field(owner, name, part, "a function")


def _wrong_field(owner: str, name: str, value: object, expected: str) -> UsageError:
    return UsageError(f"{owner} has {name}={value!r}, expected {expected}", "See `Task` and `Metric` of shoal.tasks.")


def guarded(owner: str, part: str, function: Callable[..., Any], *args: Any) -> Any:
    """What a function of a task or metric returns; what it raises names its owner.

    Args:
        owner: for people: `the task depth`.
        part: the name of the field that holds the function.
        function: of the user's own, perhaps.
        args: of the function.

    Raises:
        UsageError: it raised. Shoal's own errors pass.
    """
    try:
        return function(*args)
    except ShoalError:
        raise
    except Exception as error:
        check_memory(error, f"in {owner}")
        raise UsageError(
            f"{owner} raised {type(error).__name__} in `{part}`: {error}",
            "Does the task fit the network and its labels? Name another one with task= (--task).",
        ) from error


def module_names(model: nn.Module) -> list[str]:
    """The dotted names of the network's classes, most derived first, of a wrapper those of what it wraps."""
    base = getattr(model, "get_base_model", None)
    model = base() if callable(base) else getattr(model, "_orig_mod", model)
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__]


def main_tensor(output: Any, *names: str) -> Tensor:
    """The tensor of an output that a metric looks at: itself, that of the first of these names, or the first one.

    Raises:
        UsageError: there is no tensor of real numbers.
    """
    tensors = read_outputs(output).floating
    if not tensors:
        raise UsageError(
            f"the network returns a {type(output).__name__} without a tensor of real numbers, which this task needs",
            "Name another task with task= (--task).",
        )
    return next((tensors[name] for name in names if name in tensors), next(iter(tensors.values())))


def are_yes_or_no(targets: Tensor) -> bool:
    """Whether targets are zeros and ones, both, or 0 and 255.

    By all appearances these are labels or masks, whose logits have another scale.
    """
    ones = targets == (255 if bool((targets == 255).any()) else 1)
    return bool((ones | (targets == 0)).all()) and 0 < int(ones.sum()) < targets.numel()


def wrong_shape(tensors: Mapping[str, Tensor], least: int, most: int, form: str, width: int = 1) -> str | None:
    """Why outputs do not have the form that a task needs: all that count have too few or too many axes.

    Args:
        tensors: by name.
        least: axes at least.
        most: axes at most.
        form: of an output, for people.
        width: of the second axis, at least.
    """
    if any(least <= tensor.dim() <= most and tensor.shape[1] >= width for tensor in tensors.values()):
        return None
    listed = ", ".join(f"{shown(name)} is of shape {tuple(tensor.shape)}" for name, tensor in tensors.items())
    return f"it needs {form}, and {listed or 'there is no output of real numbers'}"
