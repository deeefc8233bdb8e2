"""The page of a training run, and the sentences it shares with the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from shoal.record import Quality
from shoal.report import chain, numbers, text
from shoal.report.comparison import Cell, ComparisonRow, LatencyPair, amount_row, speed_change, top1
from shoal.report.damage import KL
from shoal.report.html import Column, KeyFigure, Page, Section, Table, TableCell, TableRow, write_page
from shoal.report.plots import curves, paper
from shoal.training_record import BaselineRun, EpochRow, PrunedBlock, TrainRecord

_STATISTICS = (
    ("Top-1", "share of correct answers, 95 % Wilson score interval; of the network after the last epoch"),
    ("Error by epoch", "train: on augmented samples during training; test: for information, nothing was chosen by it"),
    ("Pruned", "the gate was closed on every step of as many consecutive epochs as the settings say (`freeze_after`)"),
    (
        "Parameters, MACs",
        "counted in the networks themselves, not scaled by the share of blocks; 1 MAC = 1 multiply-add",
    ),
)
# Shades of a gate by the largest response of an epoch over epsilon, and at most so many columns of epochs.
_SHADES = ((4.0, "s3"), (2.0, "s2"), (1.0, "s1"))
_MAX_COLUMNS = 80
_PROOF = {"identical": " by construction", "equal": " within the tolerance", "different": ""}
_COMPARED = {"identical": "to", "equal": "to", "different": "from"}


@dataclass(frozen=True)
class GateLane:
    """The responses of one block as (shade, number of columns), up to the epoch it was pruned in."""

    path: str
    title: str
    shades: Sequence[tuple[str, int]]


@dataclass(frozen=True)
class GateMap:
    """The responses of all blocks against epsilon."""

    desc: str
    lanes: Sequence[GateLane]
    legend: Sequence[tuple[str, str]]


def render_training(record: TrainRecord) -> str:
    """The page for one run, as text to be written in UTF-8."""
    certificate = record.settled.certificate
    return write_page(
        record,
        Page(
            "train.html.j2",
            verb="trained",
            headline=headline(record),
            lead=lead(record),
            sections=_sections(record),
            splits=[("train", record.samples), ("test", record.settled.plain.quality.n)],
            facts=_facts(record),
            statistics=_STATISTICS,
        ),
        figures=key_figures(record),
        rows=comparison_rows(record),
        certificate=certificate,
        verdict=text.VERDICTS[certificate.verdict],
        evidence=text.evidence(certificate),
        curves={size: curves.training_plot(record.rows, size) for size in curves.SIZES},
        gates=gate_map(record),
        paper={size: paper.paper_plot(record, size) for size in curves.SIZES},
        chain=chain.action_chain(record.blocks, "chain-picture"),
        damage=KL,
        pruned_table=pruned_table(record),
        baseline_table=baseline_table(record),
    )


def _sections(record: TrainRecord) -> list[Section]:
    sections = [
        (True, Section("notices")),
        (True, Section("figures")),
        (True, Section("curves", "Epoch by epoch")),
        (any(row.largest for row in record.rows), Section("gates", "Responses against epsilon")),
        (record.gated and record.rows, Section("paper", "As published, and here")),
        (True, Section("result", "Before and after")),
        (record.beside, Section("baselines", "Compared with other runs")),
        (True, Section("load", "How to load it")),
        (True, Section("measured", "How it was measured")),
    ]
    return [section for present, section in sections if present]


def _facts(record: TrainRecord) -> list[tuple[str, str]]:
    settings = record.settings
    freeze = settings.get("freeze_after")
    epochs = text.plural(len(record.rows), "epoch")
    return [
        ("Recipe", f"{record.recipe}, {epochs}, {text.plural(record.steps, 'step')}"),
        ("Epsilon", _epsilon_fact(record)),
        ("Frozen after", f"{freeze} closed epochs" if freeze else "its weights had died (as published)"),
        ("Side supervision", "yes" if settings.get("side") else "no"),
        ("Learnt from", "a teacher's answers" if settings.get("teacher") else "the labels"),
        ("Duration", numbers.duration(record.seconds)),
    ]


def _epsilon_fact(record: TrainRecord) -> str:
    if record.target is None:
        return numbers.significant(record.epsilon)
    return (
        f"held so that {record.target} of {len(record.blocks)} blocks are lost; in the end "
        f"{numbers.significant(record.epsilon)}"
    )


def headline(record: TrainRecord) -> str:
    """What the training achieved, in one plain sentence."""
    pruned, total = len(record.lost), len(record.blocks)
    clauses = [
        f"{pruned} of {total} blocks pruned in training" if record.gated else f"{total} blocks trained without gates"
    ]
    quality = record.settled.plain.quality
    if quality.top1 is not None:
        clauses.append(f"top-1 {numbers.percent(quality.top1)} on {text.plural(quality.n, 'test sample')}")
    if pruned:
        before, after = record.settled.whole.cost, record.settled.plain.cost
        clauses.append(
            f"parameters {numbers.less(before.params, after.params)}, MACs {numbers.less(before.macs, after.macs)}"
        )
    return "; ".join(clauses)


def lead(record: TrainRecord) -> list[str]:
    """Sentences below the headline: what was proved, and what gates that were not frozen would do."""
    sentences = []
    if record.lost:
        verdict = record.settled.certificate.verdict
        proof = f"{verdict}{_PROOF[verdict]} {_COMPARED[verdict]}"
        sentences.append(f"The pruned network is {proof} the full network with frozen gates.")
    if record.settled.live is not None:
        sentences.append(live_gates(record))
    return sentences


def live_gates(record: TrainRecord) -> str:
    """How the full network would behave on test if its gates were not frozen; empty if that was not measured."""
    live = record.settled.live
    if live is None:
        return ""
    accuracy = f": top-1 {numbers.percent(live.quality.top1)}" if live.quality.top1 is not None else ""
    if not live.batches_with_an_opening:
        batches = f"{live.batches} test mini-batch{'' if live.batches == 1 else 'es'}"
        return f"With live gates no pruned block would reopen on {batches}{accuracy}."
    return (
        f"With live gates, pruned blocks would reopen on {live.batches_with_an_opening} of {live.batches} test "
        f"mini-batches of {live.batch_size}{accuracy}. This is why gates are frozen."
    )


def baselines(record: TrainRecord) -> list[str]:
    """One line for each run that this run is compared with."""
    return [
        f"compared with {run.name} (epsilon {run.epsilon:g}, {run.lost} blocks pruned, "
        f"top-1 {numbers.percent(run.quality.top1)}): {numbers.points(run.comparison.top1_drop)} "
        f"({numbers.points_interval(run.comparison.top1_drop_interval)})"
        for run in record.beside
    ]


def key_figures(record: TrainRecord) -> list[KeyFigure]:
    """The numbers a reader looks for first."""
    plain = record.settled.plain
    figures = [KeyFigure("Blocks pruned", f"{len(record.lost)} of {len(record.blocks)}", f"{plain.blocks} remain")]
    if plain.quality.top1 is not None:
        interval = numbers.percent_interval(plain.quality.top1_interval)
        figures.append(KeyFigure("Top-1, test", numbers.percent(plain.quality.top1), interval))
    saving = numbers.less(record.settled.whole.cost.macs, plain.cost.macs)
    figures.append(KeyFigure("MACs", numbers.amount(plain.cost.macs), saving))
    if record.rows:
        first, last = record.rows[0].seconds, record.rows[-1].seconds
        figures.append(KeyFigure("An epoch", numbers.duration(last), f"the first took {numbers.duration(first)}"))
    return figures


def comparison_rows(record: TrainRecord) -> list[ComparisonRow]:
    """The full network with frozen gates against the pruned one."""
    a, b = record.settled.whole, record.settled.plain
    sample = f"one sample of {numbers.shape(a.cost.input_shape)}"
    test = f"test, n = {numbers.count(a.quality.n)}, 95 % interval"
    return [
        ComparisonRow("Top-1 accuracy", test, top1(a), top1(b), ""),
        amount_row("Residual blocks", "", a.blocks, b.blocks),
        amount_row("Parameters", "all of them, shortcuts and head included", a.cost.params, b.cost.params),
        amount_row("MACs", sample, a.cost.macs, b.cost.macs),
        *(
            ComparisonRow(
                f"Latency, batch {before.batch}",
                f"median; {before.device}, {text.plural(before.threads, 'thread')}",
                Cell(numbers.milliseconds(before.median_ms)),
                Cell(numbers.milliseconds(after.median_ms)),
                speed_change(LatencyPair(before, after)),
            )
            for before, after in zip(a.latency, b.latency, strict=True)
        ),
    ]


def gate_map(record: TrainRecord) -> GateMap | None:
    """The responses against epsilon, a lane for each block; None without gates."""
    measured = {path for row in record.rows for path in row.largest}
    if not measured:
        return None
    size = max(1, -(-len(record.rows) // _MAX_COLUMNS))
    columns = [record.rows[start : start + size] for start in range(0, len(record.rows), size)]
    pruned = {block.path: block.epoch for block in record.lost}
    names = ("over 4 epsilon", "2 to 4 epsilon", "1 to 2 epsilon", "under epsilon: the gate stays closed")
    styles = [*(style for _, style in _SHADES), "s0"]
    return GateMap(
        describe_gates(record),
        [_lane(block.path, record, columns, pruned) for block in record.blocks if block.path in measured],
        [(f"shade {style}", name) for style, name in zip(styles, names, strict=True)],
    )


def _lane(path: str, record: TrainRecord, columns: Sequence[Sequence[EpochRow]], pruned: dict[str, int]) -> GateLane:
    shades = [_shade([row for row in rows if path in row.largest], path, record.epsilon) for rows in columns]
    last = next(row.largest[path] for row in reversed(record.rows) if path in row.largest)
    end = f"pruned after epoch {pruned[path]}" if path in pruned else "kept"
    title = f"{path}: {end}; largest response in its last epoch {numbers.significant(last)}"
    return GateLane(path, title, [(shade, len(list(run))) for shade, run in groupby(shades)])


def _shade(rows: Sequence[EpochRow], path: str, epsilon: float) -> str:
    """The class of a column; `none` where the block was gone.

    Where gates did not work in an epoch, `epsilon` is what the response is held against.
    """
    if not rows:
        return "none"
    limits = [row.epsilon or epsilon for row in rows]
    ratio = max(row.largest[path] / limit if limit else 0.0 for row, limit in zip(rows, limits, strict=True))
    return next((style for limit, style in _SHADES if ratio > limit), "s0")


def describe_gates(record: TrainRecord) -> str:
    """The text alternative of the gate map."""
    pruned = ", ".join(f"{block.path} in epoch {block.epoch}" for block in record.lost)
    return f"Pruned: {pruned}." if pruned else "Every branch kept responses over epsilon; no block was pruned."


def pruned_table(record: TrainRecord) -> Table | None:
    """Every pruned block; None if there is none."""
    if not record.lost:
        return None
    return Table(
        ident="pruned-table",
        caption="The pruned blocks",
        columns=[
            Column("Block"),
            Column("Stage", number=True),
            Column("After epoch", number=True),
            Column("Largest response", number=True),
            Column("Remaining weight", number=True),
            Column("Would open on test", number=True),
        ],
        rows=[TableRow(block.path, _pruned_entries(block), "removed") for block in record.lost],
        filter="Filter blocks",
        hint="name, stage …",
    )


def _pruned_entries(block: PrunedBlock) -> list[TableCell]:
    remaining = block.weight_left / block.weight_before if block.weight_before else 0.0
    on_test = f"{numbers.significant(block.largest_on_test)} on test"
    return [
        TableCell(str(block.stage), sort=block.stage),
        TableCell(str(block.epoch), sort=block.epoch),
        TableCell(numbers.significant(block.largest), on_test, sort=block.largest),
        TableCell(
            numbers.significant(block.weight_left),
            f"{numbers.percent(remaining)} of the initial weight",
            sort=remaining,
        ),
        TableCell(numbers.percent(block.opens_on_test), "of test mini-batches", sort=block.opens_on_test),
    ]


def baseline_table(record: TrainRecord) -> Table | None:
    """This run and the runs it is compared with, by epsilon; None if there is no other."""
    if not record.beside:
        return None
    total, epsilon = len(record.blocks), record.epsilon
    quality = record.settled.plain.quality
    this_run = [*_run_entries(epsilon, record.settings["side"], len(record.lost), total, quality), TableCell("")]
    others = sorted(record.beside, key=lambda run: run.epsilon)
    return Table(
        ident="baseline-table",
        caption="Runs with the same number of epochs",
        columns=[
            Column("Run"),
            Column("Epsilon", number=True),
            Column("Side supervision"),
            Column("Blocks pruned", number=True),
            Column("Top-1, test", number=True),
            Column("This run against it", number=True),
        ],
        rows=[TableRow("this run", this_run), *(TableRow(run.name, _baseline_entries(run, total)) for run in others)],
        filter="Filter runs",
        hint="name, epsilon …",
    )


def _baseline_entries(run: BaselineRun, total: int) -> list[TableCell]:
    drop = run.comparison.top1_drop
    interval = numbers.points_interval(run.comparison.top1_drop_interval)
    entries = _run_entries(run.epsilon, run.side, run.lost, total, run.quality)
    return [*entries, TableCell(numbers.points(drop), interval, sort=drop)]


def _run_entries(epsilon: float, side: bool, pruned: int, total: int, quality: Quality) -> list[TableCell]:
    return [
        TableCell(numbers.significant(epsilon), sort=epsilon),
        TableCell("yes" if side else "no"),
        TableCell(f"{pruned} of {total}", sort=pruned),
        TableCell(numbers.percent(quality.top1), numbers.percent_interval(quality.top1_interval), sort=quality.top1),
    ]
