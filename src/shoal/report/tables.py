"""The rows of the two comparison tables, worded once for the page and the terminal."""

import math
from dataclasses import dataclass

from shoal.record import Comparison, Interval, Network, Record
from shoal.report import numbers, speed, words


@dataclass(frozen=True)
class Cell:
    """A value and, smaller, its interval or quartiles."""

    value: str
    detail: str = ""


@dataclass(frozen=True)
class Row:
    """One measure of both networks and how it changed."""

    label: str
    note: str
    original: Cell
    compressed: Cell
    change: str


@dataclass(frozen=True)
class PairedRow:
    """One paired measure, a cell for every split."""

    label: str
    note: str
    cells: list[Cell]


def before_after(record: Record) -> list[Row]:
    """Original against compressed: quality, speed, size."""
    return [*_quality(record), *_latency(record), *_cost(record)]


def _quality(record: Record) -> list[Row]:
    a, b = record.original, record.compressed
    split = f"{a.quality.split}, n = {numbers.count(a.quality.n)}"
    rows = []
    if a.quality.top1 is not None or b.quality.top1 is not None:
        change = numbers.points(record.comparison.top1_drop)
        rows.append(Row("Top-1 accuracy", f"{split}, 95 % interval", _top1(a), _top1(b), change))
    if a.quality.perplexity is not None or b.quality.perplexity is not None:
        tokens = f"{split}, {numbers.count(a.quality.tokens)} tokens, 95 % interval"
        change = numbers.less(a.quality.perplexity or 0.0, b.quality.perplexity or 0.0)
        rows.append(Row("Perplexity", tokens, _perplexity(a), _perplexity(b), change))
    if a.quality.loss is not None or b.quality.loss is not None:
        per = "per token, nats, 95 % interval" if a.quality.tokens else "cross-entropy in nats"
        change = numbers.more(record.comparison.loss_increase)
        rows.append(Row("Loss", f"{split}, {per}", _loss(a), _loss(b), change if a.quality.tokens else ""))
    return rows


def _perplexity(network: Network) -> Cell:
    found = network.quality
    return Cell(numbers.significant(found.perplexity), _ends(found.perplexity_interval))


def _loss(network: Network) -> Cell:
    return Cell(numbers.significant(network.quality.loss), _ends(network.quality.loss_interval))


def _ends(interval: Interval | None) -> str:
    """An interval with three digits; nothing where there is none, as of a single sequence."""
    text = numbers.significant_interval(interval, 3)
    return "" if text == numbers.MISSING else text


def _top1(network: Network) -> Cell:
    interval = network.quality.top1_interval
    detail = "" if interval is None else numbers.percent_interval(interval)
    return Cell(numbers.percent(network.quality.top1), detail)


def _latency(record: Record) -> list[Row]:
    return [
        Row(
            f"Latency, batch {pair.batch}",
            f"median and quartiles; {speed.conditions(pair)}",
            _timing(pair, "original"),
            _timing(pair, "compressed"),
            speed.words(pair),
        )
        for pair in speed.pairs(record)
    ]


def _timing(pair: speed.Pair, side: str) -> Cell:
    one = pair.original if side == "original" else pair.compressed
    if one is None:
        return Cell(numbers.MISSING)
    quartiles = numbers.significant_interval((one.q1_ms, one.q3_ms), digits=3)
    return Cell(numbers.milliseconds(one.median_ms), f"{quartiles} ms")


def _cost(record: Record) -> list[Row]:
    a, b = record.original, record.compressed
    per = f"one sample of {numbers.shape(a.cost.input_shape)}"
    return [
        Row(
            "Residual blocks",
            "",
            Cell(numbers.count(a.blocks)),
            Cell(numbers.count(b.blocks)),
            _fewer(a.blocks, b.blocks),
        ),
        _amounts("Parameters", "", a.cost.params, b.cost.params),
        _amounts("MACs", per, a.cost.macs, b.cost.macs),
        Row(
            "Weights on disk",
            "",
            Cell(numbers.storage(a.cost.weights_bytes)),
            Cell(numbers.storage(b.cost.weights_bytes)),
            numbers.less(a.cost.weights_bytes, b.cost.weights_bytes),
        ),
    ]


def _amounts(label: str, note: str, before: int, after: int) -> Row:
    return Row(
        label,
        note,
        Cell(numbers.amount(before)),
        Cell(numbers.amount(after)),
        numbers.less(before, after),
    )


def _fewer(before: int, after: int) -> str:
    if before == after:
        return "unchanged"
    return f"{abs(before - after)} {'fewer' if after < before else 'more'}"


def comparisons(record: Record) -> list[Comparison]:
    """The splits the two networks were compared on; the one for the record comes first."""
    return [record.comparison, *([record.validation] if record.validation else [])]


def paired(record: Record) -> list[PairedRow]:
    """The sample-by-sample comparison; rows about labels only where there are labels."""
    splits = comparisons(record)
    rows = []
    if any(one.top1_drop is not None for one in splits):
        rows = [
            PairedRow("Change in top-1", "Tango's 95 % score interval", [_drop(one) for one in splits]),
            PairedRow(
                "Samples that changed sides",
                "right before and wrong after, and the reverse",
                [Cell(words.discordant(one)) for one in splits],
            ),
            PairedRow(
                "McNemar's exact test",
                "p of a change at least this one-sided, were there none",
                [Cell(_p(one.p_value)) for one in splits],
            ),
        ]
    if any(one.loss_increase is not None for one in splits):
        rows += [
            PairedRow(
                "Perplexity, ratio",
                "compressed to original on the same tokens, 95 % interval paired by sequence",
                [_perplexity_ratio(one) for one in splits],
            ),
            PairedRow("Increase of the loss", "per token, nats, 95 % interval", [_increase(one) for one in splits]),
        ]
    return [
        *rows,
        PairedRow("Agreement", "same answer as the original, 95 % interval", [_agreement(one) for one in splits]),
        PairedRow(
            "Divergence",
            "mean KL(original ‖ compressed) in nats, 95 % interval",
            [_kl(one) for one in splits],
        ),
    ]


def _drop(one: Comparison) -> Cell:
    detail = "" if one.top1_drop_interval is None else numbers.points_interval(one.top1_drop_interval)
    return Cell(numbers.points(one.top1_drop), detail)


def _perplexity_ratio(one: Comparison) -> Cell:
    if one.loss_increase is None:
        return Cell(numbers.MISSING)
    low, high = one.loss_increase_interval or (-math.inf, math.inf)
    return Cell(numbers.significant(numbers.exp(one.loss_increase)), _ends((numbers.exp(low), numbers.exp(high))))


def perplexity_change(one: Comparison) -> str:
    """How the perplexity changed on the same tokens, as a sentence."""
    cell = _perplexity_ratio(one)
    interval = f", 95 % interval {cell.detail}" if cell.detail else ""
    return f"Perplexity, paired by sequence: {cell.value} times the original's{interval}"


def _increase(one: Comparison) -> Cell:
    return Cell(numbers.significant(one.loss_increase), _ends(one.loss_increase_interval))


def _p(value: float | None) -> str:
    text = numbers.probability(value)
    return text if text == numbers.MISSING or text.startswith("<") else f"p = {text}"


def _agreement(one: Comparison) -> Cell:
    return Cell(numbers.percent(one.agreement), numbers.percent_interval(one.agreement_interval))


def _kl(one: Comparison) -> Cell:
    return Cell(numbers.significant(one.kl), numbers.significant_interval(one.kl_interval))
