"""Public tasks through lm-eval: both networks answer the same samples, and are compared sample by sample."""

import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from shoal.errors import ConsentError, DataError, ShoalError, UsageError, check_memory, did_you_mean
from shoal.files.reading import is_folder, read_text, refusing
from shoal.measure.intervals import mean_interval, paired_drop
from shoal.preserve import evaluating
from shoal.record import TaskScore

# What lets the description of a task run code: functions it names, objects of YAML, templates that reach for Python's
# inner parts, metrics that are fetched, and other files, which may hold any of these.
_CODE = re.compile(
    r"!function|!!python|__\w+|\battr\b|hf_evaluate\s*:\s*true|^\s*-?\s*metric\s*:\s*[\"']?[^\s\"']*[/.\\]|^\s*include\s*:"
    r"|unsafe_code\s*:\s*true|^\s*class\s*:",
    re.MULTILINE | re.IGNORECASE,
)


@dataclass(frozen=True)
class TaskConfig:
    """What is asked, and how.

    Args:
        tasks: names that lm-eval knows, or that a file in `include` describes.
        include: a folder with descriptions of tasks of your own.
        limit: samples of each task at most.
        shots: examples in front of each sample; by default as the task says.
        batch_size: samples at once.
        seed: decides the examples.
        trust_code: run what the folder names: functions, templates that reach into Python, metrics to be fetched.
    """

    tasks: Sequence[str]
    include: Path | None = None
    limit: int | None = None
    shots: int | None = None
    batch_size: int = 8
    seed: int = 0
    trust_code: bool = False


@dataclass(frozen=True)
class TaskResults:
    """Scores, and what was left out."""

    scores: list[TaskScore]
    notes: list[str]
    harness: str


def evaluate_tasks(original: nn.Module, compressed: nn.Module, tokenizer: Any, config: TaskConfig) -> TaskResults:
    """Let both networks answer the samples of some tasks.

    Args:
        original: of transformers.
        compressed: likewise; both read with the same tokenizer.
        tokenizer: of transformers.
        config: which tasks, and how many samples.

    Raises:
        UsageError: lm-eval is not installed, or knows no such task.
        ConsentError: a folder of tasks would run code, and `trust_code` is not set.
        DataError: a data set cannot be had, or nothing can be compared.
        ModelRaisedError, OutOfMemoryError: a network failed.
    """
    _check_include(config)
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UsageError(f"tasks need the package {error.name}", "pip install 'shoal[eval]'") from error
    manager = _translated(lambda: TaskManager(include_path=str(config.include) if config.include else None))
    for task in config.tasks:
        if task not in manager.all_tasks:
            raise UsageError(f"lm-eval knows no task '{task}'", did_you_mean(task, list(manager.all_tasks)))
    before = _answers(lm_eval, manager, original, tokenizer, config)
    after = _answers(lm_eval, manager, compressed, tokenizer, config)
    scores, notes = paired_scores(before["samples"], after["samples"], before["higher_is_better"])
    if not scores:
        raise DataError("no metric of these tasks has a number for each sample", "Choose other tasks.")
    return TaskResults(scores, notes, f"lm-eval {version('lm-eval')}")


def _check_include(config: TaskConfig) -> None:
    if config.include is None:
        return
    if not is_folder(config.include):
        raise UsageError(f"there is no folder '{config.include}'", "Give one with descriptions of tasks (YAML).")
    if config.trust_code:
        return
    for file in sorted(path for path in config.include.rglob("*") if path.suffix in (".yaml", ".yml")):
        with refusing(DataError, f"cannot read the task '{file}'", "Check it."):
            code = _CODE.search(read_text(file))
        if code:
            raise ConsentError(
                f"the task '{file}' holds '{code[0].strip()}', which may run code",
                "Read the file first. Then repeat with --trust-code (in Python: trust_code=True).",
            )


def _answers(lm_eval: Any, manager: Any, model: nn.Module, tokenizer: Any, config: TaskConfig) -> Mapping[str, Any]:
    from lm_eval.models.huggingface import HFLM

    def run() -> Any:
        wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=config.batch_size)
        return lm_eval.simple_evaluate(
            model=wrapped,
            tasks=list(config.tasks),
            num_fewshot=config.shots,
            limit=config.limit,
            task_manager=manager,
            log_samples=True,
            bootstrap_iters=0,
            random_seed=config.seed,
            numpy_random_seed=config.seed,
            torch_random_seed=config.seed,
            fewshot_random_seed=config.seed,
            confirm_run_unsafe_code=config.trust_code,
        )

    states = random.getstate(), np.random.get_state()  # both of which lm-eval seeds
    try:
        with evaluating(model):
            return _translated(run)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def _translated(run: Any) -> Any:
    with _quiet():
        try:
            return run()
        except ShoalError:
            raise
        except Exception as error:
            check_memory(error, "while the tasks were measured")
            raise DataError(
                f"lm-eval cannot measure these tasks: {type(error).__name__}: {_first_line(error)}",
                "Where a data set is to be fetched, this machine needs a connection; else check the description.",
            ) from error


def paired_scores(
    before: Mapping[str, Sequence[Mapping[str, Any]]],
    after: Mapping[str, Sequence[Mapping[str, Any]]],
    higher_is_better: Mapping[str, Mapping[str, bool]],
) -> tuple[list[TaskScore], list[str]]:
    """Compare two networks on the samples that lm-eval logged of each.

    Args:
        before: of the original, by task.
        after: of the other.
        higher_is_better: of each task and metric; what is not named counts as better where it is higher.

    Returns:
        The scores, and notes on metrics without a number for each sample.

    Raises:
        DataError: the two were not asked the same.
    """
    scores, notes = [], []
    for task, samples in before.items():
        originals, others = _by_sample(samples), _by_sample(after.get(task, ()))
        if originals.keys() != others.keys():
            raise DataError(f"the two networks were not asked the same samples of '{task}'", "Please report the task.")
        keys = sorted(originals, key=str)
        for name, filter_name in _named_metrics(originals):
            chosen = [key for key in keys if key[1] == filter_name]
            pairs = [(originals[key].get(name), others[key].get(name)) for key in chosen]
            if not all(_is_number(a) and _is_number(b) for a, b in pairs):
                notes.append(f"{task}: '{name}' has no number for each sample and was left out.")
                continue
            better = higher_is_better.get(task, {}).get(name, True)
            label = name if filter_name == "none" else f"{name} ({filter_name})"
            scores.append(_score(task, label, np.array(pairs, dtype=np.float64), is_gain=better))
    return scores, notes


def _by_sample(samples: Sequence[Mapping[str, Any]]) -> dict[tuple[Any, str], Mapping[str, Any]]:
    return {(sample["doc_id"], str(sample.get("filter", "none"))): sample for sample in samples}


def _named_metrics(samples: Mapping[tuple[Any, str], Mapping[str, Any]]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((name, key[1]) for key, sample in samples.items() for name in sample["metrics"]))


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.number)) and bool(np.isfinite(value))


def _score(task: str, metric: str, pairs: np.ndarray, *, is_gain: bool) -> TaskScore:
    """Right or wrong: Tango's interval on the samples that changed sides; other numbers: Student's on differences."""
    losses = (pairs[:, 0] - pairs[:, 1]) * (1 if is_gain else -1)
    if set(np.unique(pairs)) <= {0.0, 1.0}:
        interval = paired_drop(len(pairs), int((losses > 0).sum()), int((losses < 0).sum()))
        method = "Tango's score interval"
    else:
        interval, method = mean_interval(losses), "Student's t interval"
    return TaskScore(
        task=task,
        metric=metric,
        n=len(pairs),
        original=float(pairs[:, 0].mean()),
        compressed=float(pairs[:, 1].mean()),
        drop=float(losses.mean()),
        drop_interval=interval,
        method=method,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
