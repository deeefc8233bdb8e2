"""Records in short, for the terminal: plain text when piped, and every path in full."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shoal.record import (
    BlockRecord,
    Certificate,
    Planning,
    Record,
    ScannedBlock,
    ScanRecord,
    TaskEvaluation,
    Verdict,
)
from shoal.report import comparison, metrics, numbers, plan, scan_metrics, scan_text, tasks, text, train
from shoal.report.chain import by_stage
from shoal.report.race import race_table
from shoal.report.scan_tables import shape_change
from shoal.training_record import TrainRecord

_ACTIONS = {"kept": "■", "removed": "·", "replaced": "○"}
_CERTIFICATE_STYLES = {"identical": "green", "equal": "green", "different": "yellow"}
_VERDICT_STYLES: dict[Verdict | None, str] = {"non-trivial": "", "undecided": "yellow", "trivial": "dim", None: "dim"}
# A scan of more blocks than this shows only so many at either end.
_MAX_BLOCKS, _ENDS = 40, 15
_UNLIMITED = 1_000_000
# What a terminal without Unicode shows instead.
_ASCII = str.maketrans(
    {
        "–": "-",
        "→": "->",
        "−": "-",
        "×": "x",
        "·": ".",
        "■": "#",
        "○": "o",
        "‖": "||",
        "±": "+/-",
        "⁻": "-",
        "“": '"',
        "”": '"',
        "’": "'",
        "…": "...",
        "≠": "!=",
        "≈": "~",
        **{sign: str(digit) for digit, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    }
)


def print_line(console: Console, line: str, style: str = "") -> None:
    """Print one line as it is: markup in it is not interpreted, and it is neither wrapped nor cut."""
    console.print(Text(printable(line, console), style=style), soft_wrap=True)


def printable(line: str, console: Console) -> str:
    """A line that this console can show: control characters escaped, and ASCII if it has nothing else."""
    escaped = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
    if not console.options.ascii_only:
        return escaped
    return escaped.translate(_ASCII).encode("ascii", "backslashreplace").decode("ascii")


class TextTable:
    """A rich table without lines whose cells are neither cut nor wrapped, however narrow the terminal."""

    def __init__(self, console: Console, *heading: str, right: tuple[int, ...] = ()) -> None:
        self._console = console
        self._rows: list[tuple[list[str], str]] = []
        self._right = right
        self.add(*heading, style="dim")

    def add(self, *cells: str, style: str = "") -> None:
        """Add one row."""
        self._rows.append(([printable(cell, self._console) for cell in cells], style))

    def print(self) -> None:
        """Print the table, and an empty line."""
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        for i in range(len(self._rows[0][0])):
            table.add_column(justify="right" if i in self._right else "left", no_wrap=True)
        for cells, style in self._rows:
            table.add_row(*map(Text, cells), style=style)
        # As wide as its cells, which may be wider than the terminal; blanks at the end would wrap there.
        options = self._console.options.update(width=_UNLIMITED)
        for segments in self._console.render_lines(table, options, pad=False):
            line = Text.assemble(*((segment.text, segment.style or "") for segment in segments))
            line.rstrip()
            self._console.print(line, soft_wrap=True)
        print_line(self._console, "")


def show(record: Record, out: str, console: Console) -> None:
    """Print a compression in a screenful.

    Args:
        record: of the run.
        out: the output folder of the run.
        console: to print on.
    """
    print_line(console, text.headline(record), "bold")
    if not record.reached:
        print_line(console, f"The goal was not reached. {record.message}".rstrip(), "bold yellow")
    print_line(console, "")
    _show_comparison(record, console)
    _show_actions(record.blocks, console)
    _show_plan(record, console)
    show_certificate(record.certificate, console)
    for note in record.notes:
        print_line(console, f"Note: {note}")
    _show_end(record.warnings, out, console)


def show_tasks(evaluation: TaskEvaluation, console: Console) -> None:
    """Print what public tasks say about original and compressed."""
    table = TextTable(console, "", "n", "original", "compressed", "change, paired 95 % interval", right=(1, 2, 3))
    for row, score in zip(tasks.task_rows(evaluation), evaluation.scores, strict=True):
        table.add(row.label, numbers.count(score.n), str(row.original), str(row.compressed), row.change)
    table.print()
    for note in evaluation.notes:
        print_line(console, f"Note: {note}")


def _show_end(warnings: list[str], out: str, console: Console) -> None:
    for warning in warnings:
        print_line(console, f"Warning: {warning}", "yellow")
    print_line(console, "")
    print_line(console, f"Report: {Path(out) / 'report.html'}")


def _show_comparison(record: Record, console: Console) -> None:
    table = TextTable(console, "", "original", "compressed", "change", right=(1, 2))
    for row in comparison.before_after(record):
        table.add(row.label, str(row.original), str(row.compressed), row.change)
    table.print()
    split = record.comparison
    agreement = f"same answer on {numbers.percent(split.agreement)} of {numbers.count(split.n)} {split.split} samples"
    distance = f"{agreement}; KL {numbers.significant(split.kl)} nats"
    if split.agreement is None:  # outputs that are no scores of classes
        distance = f"squared error {numbers.significant(split.mse)} of the variance of the original's output"
        if split.mse is None and split.cosine_distance is not None:
            distance = (
                f"one minus the cosine with the original's output is {numbers.significant(split.cosine_distance)}"
            )
        elif split.mse is None:
            distance = f"{numbers.percent(split.differing)} of the output's elements differ"
    print_line(console, f"Sample by sample: {distance}", "dim")
    for line in filter(None, map(metrics.groups_line, split.metrics)):
        print_line(console, line, "dim")
    if split.top1_drop_interval is not None:
        interval = numbers.points_interval(split.top1_drop_interval)
        print_line(console, f"Points of top-1, 95 % interval: {interval}", "dim")
    if split.loss_increase is not None and not comparison.is_text(record):
        print_line(console, f"Loss per pixel, paired by sample, in nats: {comparison.increase(split)} more", "dim")
    elif split.loss_increase is not None:
        ratio = comparison.perplexity_ratio(split)
        interval = f", 95 % interval {ratio.detail}" if ratio.detail else ""
        line = f"Perplexity, paired by sequence: {ratio.value} times the original's{interval}"
        print_line(console, line, "dim")
    if record.validation is not None and (drop := comparison.drop(record.validation)) is not None:
        print_line(console, f"On {record.validation.split}, where blocks were chosen: {drop}", "dim")
    print_line(console, "")


def _show_actions(blocks: list[BlockRecord], console: Console) -> None:
    if not blocks:
        return
    replaced = " replaced ○" if any(block.action == "replaced" for block in blocks) else ""
    partly = " partly kept ◧" if any(block.without for block in blocks) else ""
    table = TextTable(console, "", f"kept ■{partly} removed ·{replaced}", "", "")
    for number, members in by_stage(blocks):
        kept = sum(block.action == "kept" for block in members)
        signs = "".join("◧" if block.without else _ACTIONS[block.action] for block in members)
        shape = numbers.shape(members[-1].out_shape)
        table.add(f"stage {number}", signs, f"{kept} of {len(members)} kept", shape)
    table.print()


def _show_plan(record: Record, console: Console) -> None:
    if record.planning is None:
        return
    plans = plan.plans_of(record)
    if plans:
        another = "; --pick N takes another" if len(plans) > 1 else ""
        print_line(console, f"Front: {plan.front_range(plans)}{another}")
    for sentence in (
        plan.prediction_error(record.planning),
        plan.budget_check(record.planning),
        plan.latency_source(record.planning),
    ):
        if sentence:
            print_line(console, sentence)
    print_line(console, "")
    _show_race(record.planning, console)


def _show_race(planning: Planning, console: Console) -> None:
    race = race_table(planning)
    if race is None:
        return
    print_line(console, race.lead)
    table = TextTable(console, "race", "made by", *(text.lower() for text in race.heading), right=(0, *range(2, 20)))
    for row in race.rows:
        table.add(str(row.number), row.origin, *row.cells, style="bold" if row.chosen else "")
    table.print()


def show_chain(blocks: list[BlockRecord], console: Console) -> None:
    """Print the blocks of a network: what each is, and whether it can be removed or why not."""
    if not blocks:
        print_line(console, "No residual block detected.")
        return
    heading = ("block", "stage", "kind", "shortcut", "activation", "shape", "params", "removable")
    table = TextTable(console, *heading, right=(1, 6))
    for block in blocks:
        table.add(
            block.path,
            str(block.stage),
            block.kind,
            block.shortcut,
            block.activation or numbers.MISSING,
            shape_change(block),
            numbers.amount(block.params),
            "yes" if block.removable else f"no: {block.reason}" if block.reason else "no",
            style="" if block.removable else "dim",
        )
    table.print()
    removable = sum(block.removable for block in blocks)
    print_line(console, f"{removable} of {len(blocks)} blocks can be removed.")


def show_certificate(certificate: Certificate, console: Console) -> None:
    """Print the verdict in one line, then its assumptions."""
    line = f"Certificate: {text.VERDICTS[certificate.verdict]}. {text.evidence(certificate)}"
    print_line(console, line, _CERTIFICATE_STYLES[certificate.verdict])
    if certificate.why_not_identical:
        print_line(console, f"  Why not identical: {certificate.why_not_identical}")
    for assumption in certificate.premises:
        print_line(console, f"  Assumption: {assumption}")


def show_scan(record: ScanRecord, out: str, console: Console) -> None:
    """Print a scan in short.

    Args:
        record: of the scan.
        out: the output folder of the scan.
        console: to print on.
    """
    print_line(console, scan_text.headline(record), "bold")
    for sentence in scan_text.importance(record):
        print_line(console, sentence.replace("`", ""))
    print_line(console, f"Full network: {scan_text.baseline(record)}")
    print_line(console, scan_text.margin(record), "dim")
    print_line(console, "")
    _show_verdicts(record, console)
    _show_blocks(record, console)
    _show_layers(record, console)
    _show_scores(record, console)
    if record.also:
        print_line(console, scan_text.second(record))
        print_line(console, "")
    _show_notes(record, console)
    print_line(console, f"Report: {Path(out) / 'report.html'}")


def _show_verdicts(record: ScanRecord, console: Console) -> None:
    if not record.blocks:
        return
    table = TextTable(console, "", "non-trivial ■ undecided ? trivial ·", "", "")
    for number, members in by_stage(record.blocks):
        verdicts = [scan_metrics.verdict(block) for block in members]
        signs = "".join(scan_metrics.LETTERS[verdict] for verdict in verdicts)
        trivial = f"{verdicts.count('trivial')} of {len(members)} trivial"
        table.add(f"stage {number}", signs, trivial, numbers.shape(members[-1].out_shape))
    table.print()


def _show_blocks(record: ScanRecord, console: Console) -> None:
    if not record.blocks:
        return
    measure = scan_metrics.MEASURES[record.metric]
    # Without labels the verdict is about the divergence, so it is not shown twice.
    with_kl = record.metric not in scan_metrics.ALONE
    heading = ["block", "verdict", f"{measure.name.lower()}, {measure.unit}", "95 % interval"]
    table = TextTable(console, *heading, *(["KL, nats"] if with_kl else []), right=(2, 3, 4))
    shown = _most_and_least(record)
    for block in shown:
        table.add(*_block_cells(block, record, with_kl), style=_VERDICT_STYLES[scan_metrics.verdict(block)])
    omitted = len(record.blocks) - len(shown)
    table.print()
    if omitted:
        line = f"The {_ENDS} most and the {_ENDS} least important; the report has the other {omitted}."
        print_line(console, line, "dim")
        print_line(console, "")


def _most_and_least(record: ScanRecord) -> list[ScannedBlock]:
    if len(record.blocks) <= _MAX_BLOCKS:
        return record.blocks
    ranked = scan_metrics.ranked(record.blocks)
    return ranked if len(ranked) <= 2 * _ENDS else [*ranked[:_ENDS], *ranked[-_ENDS:]]


def _block_cells(block: ScannedBlock, record: ScanRecord, with_kl: bool) -> list[str]:
    ablation = scan_metrics.main(block)
    if ablation is None:
        return [block.path, "not measured", *[numbers.MISSING] * (3 if with_kl else 2)]
    kl = [numbers.significant(ablation.kl)] if with_kl else []
    return [block.path, ablation.verdict, *scan_metrics.amount(ablation, record.metric), *kl]


def _show_layers(record: ScanRecord, console: Console) -> None:
    if not record.layers:
        return
    tally = scan_text.tally(scan_metrics.counts(record.layers))
    print_line(console, f"{len(record.layers)} layers, each with its kernel zeroed: {tally}")
    hypothesis = scan_text.channel_hypothesis(record)
    if hypothesis:
        print_line(console, hypothesis)
    print_line(console, "")


def _show_scores(record: ScanRecord, console: Console) -> None:
    if not record.scores:
        return
    table = TextTable(console, "score", "rank correlation", "95 % interval", "blocks", "source", right=(1, 2, 3))
    for score in scan_text.by_correlation(record.scores):
        table.add(
            score.name,
            numbers.signed(score.correlation),
            numbers.signed_interval(score.correlation_interval),
            numbers.count(score.blocks),
            score.source,
        )
    table.print()


def _show_notes(record: ScanRecord, console: Console) -> None:
    for note in record.notes:
        print_line(console, f"Note: {note.replace('`', '')}", "dim")
    if record.early_stopped:
        print_line(console, f"Not measured on all samples: {len(record.early_stopped)}, named in the report", "dim")
    if record.notes or record.early_stopped:
        print_line(console, "")


def show_training(record: TrainRecord, out: str, console: Console) -> None:
    """Print a training run in a screenful.

    Args:
        record: of the run.
        out: the output folder of the run.
        console: to print on.
    """
    print_line(console, train.headline(record), "bold")
    print_line(console, "")
    table = TextTable(console, "", "full, frozen gates", "pruned", "change", right=(1, 2))
    for row in train.comparison_rows(record):
        table.add(row.label, str(row.original), str(row.compressed), row.change)
    table.print()
    for sentence in (*train.lead(record), *train.baselines(record)):
        print_line(console, sentence)
    _show_end(record.warnings, out, console)
