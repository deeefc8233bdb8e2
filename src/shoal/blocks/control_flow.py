"""Data-dependent control flow: blocks that run for some inputs only, detected by running the network on others.

A network that decides in Python by the value of a tensor, or by a random number, leaves a sign: the number left the
graph, or a random state moved. Only then is it run again, on altered inputs and other seeds, and the runs compared.
"""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.blocks.additions import residual_additions
from shoal.blocks.trace import Trace, trace_run
from shoal.errors import ModelRaisedError, TraceError

_VARIANTS = 4


@dataclass(frozen=True)
class ExecutionProfile:
    """How often each module was called in a run, and how many residual additions ran inside each."""

    calls: Counter[str]
    additions: Counter[str]


def data_dependent_blocks(
    model: nn.Module, example: Batch, run: Trace, paths: list[str], *, drew: bool
) -> dict[str, str]:
    """The blocks that are executed differently for different inputs, each with the observed difference.

    Args:
        model: the network; it is left as it was.
        example: the input of `run`.
        run: a trace of the network.
        paths: of its blocks.
        drew: whether a random state of Python moved while it ran.
    """
    if not (run.data_escapes or drew):
        return {}
    first, reasons = _profile(run), dict[str, str]()
    for number in range(_VARIANTS):
        profile = _profile_of_run(model, _perturbed_input(example, number), number)
        if profile is None:
            continue
        for path in paths:
            if path not in reasons and (difference := _difference(first, profile, path)):
                reasons[path] = f"it is executed conditionally on the input: {difference}"
    return reasons


def _difference(first: ExecutionProfile, second: ExecutionProfile, path: str) -> str:
    if first.calls[path] != second.calls[path]:
        return f"it was called {_times(first.calls[path])}, with other input {_times(second.calls[path])}"
    if first.additions[path] != second.additions[path]:
        before, after = first.additions[path], second.additions[path]
        return f"it made {before} residual addition{'' if before == 1 else 's'}, with other input {after}"
    return ""


def _times(count: int) -> str:
    return {0: "never", 1: "once"}.get(count, f"{count} times")


def _profile(run: Trace) -> ExecutionProfile:
    additions: Counter[str] = Counter()
    for addition in residual_additions(run):
        for call in run.enclosing(run.ops[addition.op].call):
            additions[call.path] += 1
    return ExecutionProfile(Counter(call.path for call in run.calls), additions)


def _profile_of_run(model: nn.Module, example: Batch, seed: int) -> ExecutionProfile | None:
    with suppress(ModelRaisedError, TraceError), seeded(seed):
        return _profile(trace_run(model, example))
    return None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the random numbers of Python, numpy and torch inside this context; their states are restored afterwards."""
    import numpy as np

    python, numpy_ = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_)


class RngWatch:
    """Notices whether Python's or numpy's random state moves; `moved` is read after the run."""

    def __init__(self) -> None:
        self.before = _python_rng_states()

    @property
    def moved(self) -> bool:
        """Whether a number was drawn."""
        return self.before != _python_rng_states()


def _python_rng_states() -> tuple[Any, ...]:
    import numpy as np

    drawn: Any = np.random.get_state(legacy=False)
    return random.getstate(), drawn["state"]["key"].tobytes(), drawn["state"]["pos"], drawn.get("has_gauss")


def _perturbed_input(example: Batch, number: int) -> Batch:
    """The input negated, enlarged, shrunk, or unchanged (under another seed); tokens in reverse order."""

    def change(key: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or "mask" in key or value.dtype == torch.bool or value.dim() == 0:
            return value
        if value.is_floating_point():
            return value * (-1.0, 8.0, 0.05, 1.0)[number]
        return value.flip(-1) if number % 2 == 0 and value.dim() > 1 else value

    kwargs = {key: change(key, value) for key, value in example.kwargs.items()}
    return Batch(tuple(change("", value) for value in example.args), kwargs, example.target)
