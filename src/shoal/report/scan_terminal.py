"""A scan in short, for the terminal: plain text when piped, and every path whole."""

from pathlib import Path

from rich.console import Console

from shoal.record import ScannedBlock, ScanRecord, Verdict
from shoal.report import marks, numbers, picture, readings, scan_words
from shoal.report.grid import Grid, say

_ALL, _ENDS = 40, 15
_STYLES: dict[Verdict | None, str] = {"non-trivial": "", "undecided": "yellow", "trivial": "dim", None: "dim"}


def show_scan(record: ScanRecord, out: str, console: Console) -> None:
    """Print what was found, in short.

    Args:
        record: of the scan.
        out: the folder the scan was written to.
        console: to print on.
    """
    say(console, scan_words.headline(record), "bold")
    for sentence in scan_words.importance(record):
        say(console, sentence.replace("`", ""))
    say(console, f"Whole network: {scan_words.baseline(record)}")
    say(console, scan_words.tolerance(record), "dim")
    say(console, "")
    _show_stages(record, console)
    _show_blocks(record, console)
    _show_layers(record, console)
    _show_scores(record, console)
    if record.also:
        say(console, scan_words.second(record))
        say(console, "")
    _show_notes(record, console)
    say(console, f"Report: {Path(out) / 'report.html'}")


def _show_stages(record: ScanRecord, console: Console) -> None:
    if not record.blocks:
        return
    grid = Grid(("", "non-trivial ■ undecided ? trivial ·", "", ""))
    for number, members in picture.by_stage(record.blocks):
        verdicts = [readings.verdict(block) for block in members]
        signs = "".join(marks.LETTERS[verdict] for verdict in verdicts)
        trivial = f"{verdicts.count('trivial')} of {len(members)} trivial"
        grid.add(f"stage {number}", signs, trivial, numbers.shape(members[-1].out_shape))
    grid.show(console)
    say(console, "")


def _show_blocks(record: ScanRecord, console: Console) -> None:
    if not record.blocks:
        return
    measure = readings.MEASURES[record.metric]
    # Without labels the divergence is what the verdict is about, and stands there once.
    with_kl = record.metric != "kl"
    heading = ["block", "verdict", f"{measure.name.lower()}, {measure.unit}", "95 % interval"]
    grid = Grid([*heading, "KL, nats"] if with_kl else heading, frozenset({2, 3, 4}))
    shown, left_out = _shown(record)
    for block in shown:
        grid.add(*_cells(block, record, with_kl), style=_STYLES[readings.verdict(block)])
    grid.show(console)
    if left_out:
        say(console, f"The {_ENDS} most and the {_ENDS} least important; the report has the {left_out} others.", "dim")
    say(console, "")


def _shown(record: ScanRecord) -> tuple[list[ScannedBlock], int]:
    if len(record.blocks) <= _ALL:
        return record.blocks, 0
    ranked = readings.ranked(record.blocks)
    ends = ranked if len(ranked) <= 2 * _ENDS else [*ranked[:_ENDS], *ranked[-_ENDS:]]
    return ends, len(record.blocks) - len(ends)


def _cells(block: ScannedBlock, record: ScanRecord, with_kl: bool) -> list[str]:
    one = readings.main(block)
    if one is None:
        return [block.path, "not measured", *[numbers.MISSING] * (3 if with_kl else 2)]
    kl = [numbers.significant(one.kl)] if with_kl else []
    return [block.path, one.verdict, *readings.amount(one, record.metric), *kl]


def _show_layers(record: ScanRecord, console: Console) -> None:
    if not record.layers:
        return
    found = readings.counts(record.layers)
    said = scan_words.tally({word: found[word] for word in readings.VERDICTS})
    say(console, f"{len(record.layers)} layers, each with its kernel set to zero: {said}")
    claim = scan_words.claim(record)
    if claim:
        say(console, claim)
    say(console, "")


def _show_scores(record: ScanRecord, console: Console) -> None:
    if not record.scores:
        return
    grid = Grid(("score", "rank correlation", "95 % interval", "blocks", "source"), frozenset({1, 2, 3}))
    for one in scan_words.by_correlation(record.scores):
        grid.add(
            one.name,
            numbers.signed(one.correlation),
            numbers.signed_interval(one.correlation_interval),
            numbers.count(one.blocks),
            one.source,
        )
    grid.show(console)
    say(console, "")


def _show_notes(record: ScanRecord, console: Console) -> None:
    for note in record.notes:
        say(console, f"Note: {note.replace('`', '')}", "dim")
    if record.partly_measured:
        say(console, f"Not measured on all samples: {len(record.partly_measured)}, named in the report", "dim")
    if record.notes or record.partly_measured:
        say(console, "")
