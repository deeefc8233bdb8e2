"""`shoal compress --from DIR`: another goal for the network of an earlier run, starting from its tables."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shoal.cli.compress import TABLES, CompressRequest
from shoal.cli.options import DataOptions
from shoal.errors import FolderError, UsageError
from shoal.files.reading import is_file, read_json, refusing
from shoal.pipeline import Budget, parse_goal
from shoal.pipeline.cache import FINGERPRINT
from shoal.pipeline.candidate_table import STUDENT_BUDGET
from shoal.recover import read_budget
from shoal.store.folder import RUN


class _Patterns(BaseModel):
    """Of the goal of a run: which blocks it was about."""

    include: list[str] = []
    exclude: list[str] = []


class _Before(BaseModel):
    """What `run.json` says of an earlier run, as far as another goal needs it; any other key is passed over."""

    model_config = ConfigDict(strict=True)

    model: str
    data: str
    weights_file: str | None = None
    goal: _Patterns = _Patterns()
    mean: str | None = None
    std: str | None = None
    size: int | None = None
    limit: int | None = None
    seed: int = Field(ge=-(2**63), lt=2**64)
    batch_size: int = Field(ge=1)
    latency_batch_sizes: list[int] = []
    tokenizer: str | None = None
    sequence_length: int | None = None
    images: int = Field(ge=1)
    device: str
    channels_last: bool
    latency_from: str | None = None
    tables: str | None = None
    recover: str | None = None
    recovery_asked: bool = True
    race: int | None = Field(default=None, ge=0)
    lora: int = Field(default=0, ge=0)
    checkpointing: bool = False
    precision: Literal["fp32", "bf16"] = "fp32"
    try_plans: int = Field(default=0, ge=0)
    stand_ins: str | None = None
    student_budget: str = STUDENT_BUDGET
    unlabelled: str | None = None
    self_data: int = Field(default=0, ge=0)
    output: list[str] | None = None
    task: str | None = None


def load_previous_request(folder: Path, asked: CompressRequest, named: Collection[str]) -> CompressRequest:
    """The request of the run in `folder`, with the new goal.

    Network, data, recovery and everything the tables depend on are taken from that run; only where the network's
    weights or the data have moved are they given again.

    Args:
        folder: of the earlier run.
        asked: what the command line says.
        named: names of the options that stand on the command line.

    Raises:
        UsageError: a goal that needs no plan, or an option that would need other tables.
        FolderError: no run of `shoal compress`, or one that made no tables.
    """
    if not asked.goal.by_plan:
        raise UsageError(
            "--from starts from the tables of a plan, this goal needs none",
            "Give --latency, --macs, --params, --depth, --pick, or --max-drop with --replace.",
        )
    if asked.goal.include or asked.goal.exclude:
        raise UsageError("--include and --exclude belong to the tables", "Make new ones: leave out --from.")
    before = _arguments(folder)
    _check_asked(asked, before, named)
    tables = (Path(before["tables"]) if before.get("tables") else folder / TABLES).resolve()
    if not is_file(tables / FINGERPRINT):  # nothing is begun in a folder that run.json merely names
        raise FolderError(f"'{folder}' holds no tables: its run made no plan", "Give the folder of one with a budget.")
    options = DataOptions(
        before["mean"],
        before["std"],
        before["size"],
        before["limit"],
        before["seed"],
        before["batch_size"],
        Path(before["tokenizer"]) if before.get("tokenizer") else None,
        before.get("sequence_length"),
    )
    weights = Path(before["weights_file"]) if before.get("weights_file") else None
    patterns = {name: _names(before, name) for name in ("include", "exclude")}
    return dataclasses.replace(
        asked,
        model=asked.model or before["model"],
        data=asked.data or before["data"],
        weights=asked.weights or weights,
        goal=parse_goal({**asked.goal.to_dict(), **patterns}),
        data_options=options,
        latency_batch_sizes=asked.latency_batch_sizes
        if "batch_size" in named
        else tuple(before.get("latency_batch_sizes", ())),
        images=before["images"],
        device=before["device"],
        channels_last=before["channels_last"],
        stand_ins=before.get("stand_ins"),
        student_budget=before.get("student_budget", asked.student_budget),
        output=before.get("output"),
        task=before.get("task"),
        latency_from=asked.latency_from or before.get("latency_from"),
        tables=tables,
        **_recovery(asked, before, named),
    )


def _recovery(asked: CompressRequest, before: dict[str, Any], typed: Collection[str]) -> dict[str, Any]:
    """Budget, unlabelled data and race of recovery, each as in that run unless the command line names it."""
    budget = asked.recover if "recover" in typed else before.get("recover")
    extra_named = "unlabelled" in typed
    extra = asked.unlabelled if extra_named else before.get("unlabelled")
    if not extra_named and read_budget(budget) is None:
        extra = None
    # Extra data is of either kind: one that is named takes the place of the other.
    written = asked.self_data if "self_data" in typed or extra_named else before.get("self_data", 0)
    if "self_data" not in typed and read_budget(budget) is None:
        written = 0
    if asked.self_data and not extra_named:
        extra = None
    named = bool({"recover", "unlabelled", "self_data"} & set(typed))
    # A folder of an earlier version does not say whether somebody asked: then it is taken as asked for.
    race = asked.race
    if "race" not in typed and isinstance(asked.goal, Budget):  # only for a budget do several plans contend
        recorded = before.get("race")
        race = recorded if recorded is not None else before.get("try_plans") or race
    asked_for = named or before.get("recovery_asked", True)
    lora = asked.lora if "lora" in typed or "recover" in typed else before.get("lora", 0)
    return {
        "recover": budget,
        "unlabelled": extra,
        "self_data": written,
        "recovery_asked": asked_for,
        "race": race,
        "lora": lora,
        "checkpointing": asked.checkpointing or before.get("checkpointing", False),
        "bf16": asked.bf16 or before.get("precision") == "bf16",
    }


def _check_asked(asked: CompressRequest, before: dict[str, Any], named: Collection[str]) -> None:
    """Refuse what says something else than the run that made the tables."""
    options = dataclasses.asdict(asked.data_options)
    options["tokenizer"] = str(options["tokenizer"]) if options["tokenizer"] else None
    now = {
        **options,
        "images": asked.images,
        "device": asked.device,
        "channels_last": asked.channels_last,
        "stand_ins": asked.stand_ins,
        "student_budget": asked.student_budget,
        "output": asked.output,
        "task": asked.task,
    }
    for name, value in now.items():
        if name in named and value != before.get(name):
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{flag} is {value}, the tables were made with {before.get(name)}",
                f"Leave out {flag}, or make new tables: leave out --from.",
            )


def _arguments(folder: Path) -> dict[str, Any]:
    with refusing(FolderError, f"'{folder}' is no output folder of Shoal", "Give that of a run with a budget."):
        claim = read_json(folder / RUN)
    arguments = claim.get("arguments") if isinstance(claim, dict) else None
    if not isinstance(arguments, dict) or claim.get("command") != "compress":
        raise FolderError(f"'{folder}' is no run of `shoal compress`", "Give the folder of a run with a budget.")
    with refusing(FolderError, f"'{folder / RUN}' is damaged", "Give the folder of another run."):
        try:
            return _Before.model_validate(arguments).model_dump()
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _names(arguments: dict[str, Any], key: str) -> tuple[str, ...]:
    return tuple(arguments.get("goal", {}).get(key, ()))
