"""Several runs on one page: one front of loss against speed, one table, a link to the page of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shoal.errors import UsageError
from shoal.record import FrozenModel, Machine, Record
from shoal.report import comparison, metrics, numbers
from shoal.report.html import Column, Page, Section, Table, TableCell, TableRow, write_page

_DIVERGENCE = "of divergence from the original"
_STATISTICS = (
    ("Loss", "of the metric on test, paired by sample, with its 95 % interval; positive is worse"),
    ("Speed", "latency of the original over that of the network, timed in pairs within one run"),
    ("MACs, parameters", "as a share of the original's"),
)
_COLUMNS = (
    Column("Run"),
    Column("Model"),
    Column("Data"),
    Column("Blocks", number=True),
    Column("Loss", number=True),
    Column("Speed", number=True),
    Column("MACs", number=True),
    Column("Parameters", number=True),
    Column("Device"),
)


@dataclass(frozen=True)
class NamedRun:
    """A run with the name that the page calls it by, and where its own page is, as a relative address."""

    name: str
    record: Record
    page: str


class RunSummary(FrozenModel):
    """What the page shows of a run; the loss is in `unit`, the speed a factor."""

    name: str
    page: str
    model: str
    data: str
    blocks: int
    blocks_before: int
    loss: float
    loss_interval: tuple[float, float]
    unit: str
    speedup: float | None
    batch: int | None
    macs_share: float
    params_share: float
    device: str


class ComparedRuns(FrozenModel):
    """The page as data, which is embedded in it."""

    model: str
    data: str
    runs: list[RunSummary]
    machine: Machine
    created: str
    warnings: list[str]


def render_runs(runs: Sequence[NamedRun]) -> str:
    """The page, as text to be written in UTF-8.

    Raises:
        UsageError: no run.
    """
    if not runs:
        raise UsageError("there is no run to report on", "Give one output folder or more.")
    compared = _compared(runs)
    comparable = not compared.warnings  # else a line through the points would compare what does not
    best = _undominated(compared.runs) if comparable else []
    plots = _plots(compared.runs, best) if comparable else {}
    return write_page(
        compared,
        Page(
            "runs.html.j2",
            verb="compared",
            headline=f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} side by side",
            lead=[],
            sections=[
                Section("notices"),
                Section("front", "The front" if plots else "Their pages"),
                Section("table", "The runs"),
            ],
            splits=[],
            statistics=_STATISTICS,
        ),
        plots=plots,
        runs_table=_table(compared.runs, best),
        best=best,
    )


def _compared(runs: Sequence[NamedRun]) -> ComparedRuns:
    records = [run.record for run in runs]
    summaries = [_summary(run) for run in runs]
    models, data = ({getattr(record, name): None for record in records} for name in ("model", "data"))
    warnings = [
        f"{problem}: there is no front of all of them."
        for problem, values in (
            ("The runs are of several networks", models),
            ("The runs are on several data sets", data),
            ("The runs were timed on several devices", {run.device for run in summaries}),
            ("The runs were timed at several batch sizes", {run.batch for run in summaries} - {None}),
            ("The losses are in several units", {run.unit for run in summaries}),
            ("The divergences are of several kinds", _kinds(records)),
        )
        if len(values) > 1
    ]
    return ComparedRuns(
        model=", ".join(models),
        data=", ".join(data),
        runs=summaries,
        machine=records[0].machine,
        created=max(record.created for record in records),
        warnings=warnings,
    )


def _summary(run: NamedRun) -> RunSummary:
    record = run.record
    timed = [pair for pair in comparison.latency_pairs(record) if pair.speedup is not None]
    loss, interval, unit = _loss(record)
    before, after = record.original, record.compressed
    return RunSummary(
        name=run.name,
        page=run.page,
        model=record.model,
        data=record.data,
        blocks=after.blocks,
        blocks_before=before.blocks,
        loss=loss,
        loss_interval=interval,
        unit=unit,
        speedup=timed[-1].speedup if timed else None,
        batch=timed[-1].batch if timed else None,
        macs_share=after.cost.macs / max(before.cost.macs, 1),
        params_share=after.cost.params / max(before.cost.params, 1),
        device=f"{record.machine.processor}, {record.machine.device}",
    )


def _loss(record: Record) -> tuple[float, tuple[float, float], str]:
    """The drop of the task's first metric that has one, as `MaxDrop` takes it, or of top-1; else the damage."""
    seen = record.comparison
    metric = metrics.deciding(seen)
    if metric is not None:
        what = metric.label if metric.against == "labels" else f"{metric.label} against the original's output"
        unit = metrics.loss_unit(metric)
        return *metrics.loss(metric), f"{unit} of {what}" if unit else what
    if seen.top1_drop is not None and seen.top1_drop_interval is not None:
        low, high = seen.top1_drop_interval
        return 100 * seen.top1_drop, (100 * low, 100 * high), "points of top-1"
    return seen.kl, seen.kl_interval, _DIVERGENCE


def _kinds(records: Sequence[Record]) -> set[str]:
    """What the divergences are, where they are what is compared: those of two tasks have no common scale."""
    return {record.outputs.damage for record in records if record.outputs and _loss(record)[2] == _DIVERGENCE}


def _undominated(runs: Sequence[RunSummary]) -> list[str]:
    """The names of the runs that no other one beats in both loss and speed."""
    timed = [run for run in runs if run.speedup is not None]
    return [
        run.name
        for run in timed
        if not any(
            other.loss <= run.loss
            and (other.speedup or 0) >= (run.speedup or 0)
            and (other.loss, other.speedup) != (run.loss, run.speedup)
            for other in timed
        )
    ]


def _plots(runs: Sequence[RunSummary], best: Sequence[str]) -> dict[str, str]:
    from shoal.report.plots import runs as picture

    plots = {size: picture.plot(runs, best, size) for size in picture.SIZES}
    return plots if all(plots.values()) else {}


def _table(runs: Sequence[RunSummary], best: Sequence[str]) -> Table:
    rows = [TableRow(run.name, _entries(run), "chosen" if run.name in best else "") for run in runs]
    return Table("runs", "Every run with its figures", "Filter runs", "name, model, device …", _COLUMNS, rows)


def _entries(run: RunSummary) -> list[TableCell]:
    low, high = run.loss_interval
    interval = f"{numbers.significant(low)} to {numbers.significant(high)} {run.unit}"
    speed = "not measured" if run.speedup is None else f"{numbers.ratio(run.speedup)} ×"
    cells: list[Any] = [
        TableCell(run.model, code=True),
        TableCell(run.data, code=True),
        TableCell(f"{run.blocks} of {run.blocks_before}", sort=run.blocks),
        TableCell(numbers.significant(run.loss), interval, sort=run.loss),
        TableCell(speed, f"batch {run.batch}" if run.batch else "", sort=run.speedup),
        TableCell(numbers.percent(run.macs_share), sort=run.macs_share),
        TableCell(numbers.percent(run.params_share), sort=run.params_share),
        TableCell(run.device),
    ]
    return cells
