"""The record in short, for the terminal: plain text when piped, and every path whole."""

from pathlib import Path

from rich.console import Console

from shoal.record import BlockRecord, Certificate, Record
from shoal.report import numbers, picture, plan_words, tables, words
from shoal.report.grid import Grid, say
from shoal.report.plans import plans

_FATE = {"kept": "■", "removed": "·", "replaced": "○"}
_VERDICT_STYLE = {"identical": "green", "equal": "green", "different": "yellow"}


def show(record: Record, out: str, console: Console) -> None:
    """Print what was done, in a screenful.

    Args:
        record: of the run.
        out: the folder the run was written to.
        console: to print on.
    """
    say(console, words.headline(record), "bold")
    if not record.reached:
        say(console, f"The goal was not reached. {record.message}".rstrip(), "bold yellow")
    say(console, "")
    _show_table(record, console)
    _show_stages(record.blocks, console)
    _show_plan(record, console)
    show_certificate(record.certificate, console)
    for note in record.notes:
        say(console, f"Note: {note}")
    show_warnings(record.warnings, console)
    say(console, "")
    say(console, f"Report: {Path(out) / 'report.html'}")


def _show_table(record: Record, console: Console) -> None:
    grid = Grid(("", "original", "compressed", "change"), frozenset({1, 2}))
    for row in tables.before_after(record):
        grid.add(row.label, _cell(row.original), _cell(row.compressed), row.change)
    grid.show(console)
    say(console, "")
    seen = record.comparison
    agreement = f"same answer on {numbers.percent(seen.agreement)} of {numbers.count(seen.n)} {seen.split} samples"
    say(console, f"Sample by sample: {agreement}; KL {numbers.significant(seen.kl)} nats", "dim")
    if seen.top1_drop_interval is not None:
        text = f"Points of top-1, 95 % interval: {numbers.points_interval(seen.top1_drop_interval)}"
        say(console, text, "dim")
    if seen.loss_increase is not None:
        say(console, tables.perplexity_change(seen), "dim")
    if record.validation is not None and record.validation.top1_drop is not None:
        drop = numbers.points(record.validation.top1_drop)
        say(console, f"On {record.validation.split}, where blocks were chosen: {drop}", "dim")
    say(console, "")


def _cell(cell: tables.Cell) -> str:
    return f"{cell.value} ({cell.detail})" if cell.detail else cell.value


def _show_stages(blocks: list[BlockRecord], console: Console) -> None:
    if not blocks:
        return
    replaced = " replaced ○" if any(block.fate == "replaced" for block in blocks) else ""
    partly = " in part ◧" if any(block.without for block in blocks) else ""
    grid = Grid(("", f"kept ■{partly} removed ·{replaced}", "", ""))
    for number, members in picture.by_stage(blocks):
        kept = sum(block.fate == "kept" for block in members)
        signs = "".join("◧" if block.without else _FATE[block.fate] for block in members)
        shape = numbers.shape(members[-1].out_shape)
        grid.add(f"stage {number}", signs, f"{kept} of {len(members)} kept", shape)
    grid.show(console)
    say(console, "")


def _show_plan(record: Record, console: Console) -> None:
    if record.planning is None:
        return
    found = plans(record)
    if found:
        another = "; --pick N takes another" if len(found) > 1 else ""
        say(console, f"Front: {plan_words.front(found)}{another}")
    for sentence in (plan_words.surprise(record.planning), plan_words.source(record.planning)):
        if sentence:
            say(console, sentence[0].upper() + sentence[1:])
    say(console, "")


def show_warnings(warnings: list[str], console: Console) -> None:
    """Print warnings, one a line."""
    for warning in warnings:
        say(console, f"Warning: {warning}", "yellow")


def show_chain(blocks: list[BlockRecord], console: Console) -> None:
    """Print the blocks of a network: what each is, and whether it can be removed or why not."""
    if not blocks:
        say(console, "No residual block found.")
        return
    grid = Grid(
        ("block", "stage", "kind", "shortcut", "activation", "shape", "params", "removable"),
        frozenset({1, 6}),
    )
    for block in blocks:
        grid.add(
            block.path,
            str(block.stage),
            block.kind,
            block.shortcut,
            block.activation or numbers.MISSING,
            _shapes(block),
            numbers.amount(block.params),
            "yes" if block.removable else f"no: {block.reason}" if block.reason else "no",
            style="" if block.removable else "dim",
        )
    grid.show(console)
    removable = sum(block.removable for block in blocks)
    say(console, "")
    say(console, f"{removable} of {len(blocks)} blocks can be removed.")


def _shapes(block: BlockRecord) -> str:
    after = numbers.shape(block.out_shape)
    return after if block.in_shape == block.out_shape else f"{numbers.shape(block.in_shape)} → {after}"


def show_certificate(certificate: Certificate, console: Console) -> None:
    """Print the verdict in one line, then what it rests on."""
    verdict = words.VERDICTS[certificate.verdict]
    style = _VERDICT_STYLE[certificate.verdict]
    say(console, f"Certificate: {verdict}. {words.evidence(certificate)}", style)
    if certificate.why_not_identical:
        say(console, f"  Why not identical: {certificate.why_not_identical}")
    for premise in certificate.premises:
        say(console, f"  Premise: {premise}")
