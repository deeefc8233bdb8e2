"""The original against the compressed network, as table rows that the page and the terminal share."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from shoal.record import Comparison, Interval, Latency, LatencyRatio, MetricComparison, Network, Record
from shoal.report import metrics, numbers

# Two speedups that differ by less are the same to a reader.
_ALIKE = 1.1
IN_PAIRS = "timed in pairs"


@dataclass(frozen=True)
class Cell:
    """A value and, in smaller type, its interval or quartiles."""

    value: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.value} ({self.detail})" if self.detail else self.value


@dataclass(frozen=True)
class ComparisonRow:
    """One measure of both networks, and its change."""

    label: str
    note: str
    original: Cell
    compressed: Cell
    change: str


@dataclass(frozen=True)
class PairedRow:
    """One paired measure, with a cell for each split."""

    label: str
    note: str
    cells: list[Cell]


@dataclass(frozen=True)
class LatencyPair:
    """The latency of both networks under the same conditions; one side may be missing."""

    original: Latency | None
    compressed: Latency | None

    @property
    def batch(self) -> int:
        """The batch size of both measurements."""
        return self.either.batch

    @property
    def either(self) -> Latency:
        """Whichever side exists; the conditions of both are equal."""
        latency = self.original or self.compressed
        if latency is None:
            raise ValueError("A pair of latencies needs at least one side.")
        return latency

    @property
    def ratio(self) -> LatencyRatio | None:
        """From pairs of timings, where it was measured."""
        return self.compressed.ratio if self.original is not None and self.compressed is not None else None

    @property
    def speedup(self) -> float | None:
        """Original over compressed, of pairs or of medians; None where a side is missing or not a positive number."""
        if self.original is None or self.compressed is None:
            return None
        return self.speedup_by_medians if self.ratio is None else 1 / self.ratio.ratio

    @property
    def speedup_by_medians(self) -> float | None:
        """The same from the two medians alone."""
        if self.original is None or self.compressed is None:
            return None
        before, after = self.original.median_ms, self.compressed.median_ms
        if not (math.isfinite(before) and math.isfinite(after)) or before <= 0 or after <= 0:
            return None
        return before / after

    @property
    def medians_agree(self) -> bool:
        """Whether a reader who divides one median by the other comes to about the same."""
        if self.speedup is None or self.speedup_by_medians is None:
            return True
        return 1 / _ALIKE < self.speedup_by_medians / self.speedup < _ALIKE

    @property
    def within_noise(self) -> bool:
        """Whether neither network can be called faster: by the interval of the ratio, else by the quartiles."""
        a, b = self.original, self.compressed
        if self.ratio is not None:
            return self.ratio.is_within_noise
        return a is not None and b is not None and a.q1_ms <= b.q3_ms and b.q1_ms <= a.q3_ms


def latency_pairs(record: Record) -> list[LatencyPair]:
    """The latencies of both networks, matched by batch size and conditions, smallest batch first."""
    original, compressed = (
        {_conditions_key(latency): latency for latency in network.latency}
        for network in (record.original, record.compressed)
    )
    return [LatencyPair(original.get(key), compressed.get(key)) for key in sorted({*original, *compressed})]


def _conditions_key(latency: Latency) -> tuple[int, str, str, int, bool]:
    return (latency.batch, latency.device, latency.dtype, latency.threads, latency.channels_last)


def speed_change(pair: LatencyPair) -> str:
    """The speedup in words: `1.91 times faster`, `1.20 times slower`, `no difference beyond noise`.

    Where other work on the machine has moved the medians, which stand in the same row, it says what it is from.
    """
    speedup = pair.speedup
    if speedup is None:
        return numbers.MISSING
    if pair.within_noise:
        return "no difference beyond noise"
    change = f"{numbers.ratio(speedup)} times faster" if speedup >= 1 else f"{numbers.ratio(1 / speedup)} times slower"
    return change if pair.medians_agree else f"{change}, {IN_PAIRS}"


def conditions(pair: LatencyPair) -> str:
    """The conditions of a measurement, in one phrase."""
    latency = pair.either
    threads = f"{latency.threads} thread{'' if latency.threads == 1 else 's'}"
    layout = ", channels last" if latency.channels_last else ""
    return f"{latency.device}, {latency.dtype}, {threads}{layout}, {latency.runs} runs"


def before_after(record: Record) -> list[ComparisonRow]:
    """Original against compressed: quality, latency, size."""
    return [*_quality(record), *_latency(record), *_cost(record)]


def _quality(record: Record) -> list[ComparisonRow]:
    a, b = record.original, record.compressed
    split = f"{a.quality.split}, n = {numbers.count(a.quality.n)}"
    rows = []
    if a.quality.top1 is not None or b.quality.top1 is not None:
        change = numbers.points(record.comparison.top1_drop)
        rows.append(ComparisonRow("Top-1 accuracy", f"{split}, 95 % interval", top1(a), top1(b), change))
    if a.quality.perplexity is not None or b.quality.perplexity is not None:
        tokens = f"{split}, {numbers.count(a.quality.tokens)} tokens, 95 % interval"
        change = numbers.less(a.quality.perplexity or 0.0, b.quality.perplexity or 0.0)
        rows.append(ComparisonRow("Perplexity", tokens, _perplexity(a), _perplexity(b), change))
    if a.quality.loss is not None or b.quality.loss is not None:
        unit = f"per {position(record)}, nats, 95 % interval" if a.quality.tokens else "cross-entropy in nats"
        change = numbers.more(record.comparison.loss_increase) if a.quality.tokens else ""
        rows.append(ComparisonRow("Loss", f"{split}, {unit}", _loss(a), _loss(b), change))
    return [*(_metric(metric, record.comparison.split) for metric in record.comparison.metrics), *rows]


def is_text(record: Record) -> bool:
    """Whether the positions that losses are of follow each other as the tokens of a text do."""
    return record.original.quality.perplexity is not None


def position(record: Record) -> str:
    """What a loss is the mean over, where a sample has several answers."""
    return "token" if is_text(record) else "pixel"


def _metric(metric: MetricComparison, split: str) -> ComparisonRow:
    original = Cell(metrics.value(metric, metric.original), metrics.interval(metric, metric.original_interval))
    compressed = Cell(metrics.value(metric, metric.compressed), metrics.interval(metric, metric.compressed_interval))
    return ComparisonRow(metric.label, metrics.note(metric, split), original, compressed, metrics.change(metric))


def top1(network: Network) -> Cell:
    """Accuracy with its interval."""
    interval = network.quality.top1_interval
    return Cell(numbers.percent(network.quality.top1), "" if interval is None else numbers.percent_interval(interval))


def _perplexity(network: Network) -> Cell:
    return Cell(numbers.significant(network.quality.perplexity), _interval(network.quality.perplexity_interval))


def _loss(network: Network) -> Cell:
    return Cell(numbers.significant(network.quality.loss), _interval(network.quality.loss_interval))


def _interval(interval: Interval | None) -> str:
    """An interval with three digits; empty where there is none, as for a single sequence."""
    text = numbers.significant_interval(interval, 3)
    return "" if text == numbers.MISSING else text


def _latency(record: Record) -> list[ComparisonRow]:
    return [
        ComparisonRow(
            f"Latency, batch {pair.batch}",
            f"median and quartiles; {conditions(pair)}{_of_original(pair.ratio)}",
            _timing(pair.original),
            _timing(pair.compressed),
            speed_change(pair),
        )
        for pair in latency_pairs(record)
    ]


def _of_original(ratio: LatencyRatio | None) -> str:
    """What the pairs of timings say, and whether time ran out before they said it precisely."""
    if ratio is None:
        return ""
    width = (
        "" if ratio.is_precise else f", {numbers.percent(ratio.width)} wide where {ratio.precision:.0%} was asked for"
    )
    counted = "" if ratio.instructions is None else f", {ratio.instructions:.3g} of its instructions"
    return f"; {ratio} in {numbers.count(ratio.rounds)} pairs{width}{counted}"


def _timing(latency: Latency | None) -> Cell:
    if latency is None:
        return Cell(numbers.MISSING)
    quartiles = numbers.significant_interval((latency.q1_ms, latency.q3_ms), digits=3)
    return Cell(numbers.milliseconds(latency.median_ms), f"{quartiles} ms")


def _cost(record: Record) -> list[ComparisonRow]:
    a, b = record.original, record.compressed
    fewer = f"{abs(a.blocks - b.blocks)} {'fewer' if b.blocks < a.blocks else 'more'}"
    sample = f"one sample of {numbers.shape(a.cost.input_shape)}"
    blocks = Cell(numbers.count(a.blocks)), Cell(numbers.count(b.blocks))
    return [
        ComparisonRow("Residual blocks", "", *blocks, "unchanged" if a.blocks == b.blocks else fewer),
        amount_row("Parameters", "", a.cost.params, b.cost.params),
        amount_row("MACs", sample, a.cost.macs, b.cost.macs),
        amount_row("Weights on disk", "", a.cost.weights_bytes, b.cost.weights_bytes, numbers.storage),
    ]


def amount_row(
    label: str, note: str, before: int, after: int, write: Callable[[float], str] = numbers.amount
) -> ComparisonRow:
    """A row for a cost that counts something."""
    return ComparisonRow(label, note, Cell(write(before)), Cell(write(after)), numbers.less(before, after))


def comparisons(record: Record) -> list[Comparison]:
    """The splits that both networks were compared on; the one to quote comes first."""
    return [record.comparison, *([record.validation] if record.validation else [])]


def paired(record: Record) -> list[PairedRow]:
    """The sample-by-sample comparison; rows about labels only where there are labels."""
    splits = comparisons(record)

    def row(label: str, note: str, write: Callable[[Comparison], Cell]) -> PairedRow:
        return PairedRow(label, note, [write(split) for split in splits])

    rows = []
    if any(split.top1_drop is not None for split in splits):
        rows = [
            row("Change in top-1", "Tango's 95 % score interval", _drop),
            row("Samples that changed sides", "right before and wrong after, and the reverse", _discordant),
            row("McNemar's exact test", "p-value of a change at least this one-sided", _p_value),
        ]
    if any(split.loss_increase is not None for split in splits):
        ratio = "compressed over original on the same tokens, 95 % interval paired by sequence"
        rows += [row("Perplexity ratio", ratio, perplexity_ratio)] if is_text(record) else []
        rows.append(row("Loss increase", f"per {position(record)}, nats, 95 % interval", increase))
    if any(split.mse is not None for split in splits):
        rows.append(row("Squared error", "mean, relative to the output's variance, 95 % interval", _mse))
    if any(split.cosine_distance is not None for split in splits):
        rows.append(row("Cosine distance", "mean of one minus the cosine, 95 % interval", _cosine_distance))
    if any(split.differing is not None for split in splits):
        rows.append(row("Elements that differ", "share of the integer outputs, 95 % interval", _differing))
    if all(split.agreement is None for split in splits):
        return rows
    return [
        *rows,
        row("Agreement", "same answer as the original, 95 % interval", _agreement),
        row("Divergence", "mean KL(original ‖ compressed) in nats, 95 % interval", _kl),
    ]


def _drop(split: Comparison) -> Cell:
    interval = split.top1_drop_interval
    return Cell(numbers.points(split.top1_drop), "" if interval is None else numbers.points_interval(interval))


def _discordant(split: Comparison) -> Cell:
    if split.lost is None or split.won is None:
        return Cell(numbers.MISSING)
    return Cell(f"{numbers.count(split.lost)} lost, {numbers.count(split.won)} gained")


def _p_value(split: Comparison) -> Cell:
    text = numbers.probability(split.p_value)
    return Cell(text if text == numbers.MISSING or text.startswith("<") else f"p = {text}")


def perplexity_ratio(split: Comparison) -> Cell:
    """Compressed over original perplexity on the same tokens, with its interval."""
    if split.loss_increase is None:
        return Cell(numbers.MISSING)
    low, high = split.loss_increase_interval or (-math.inf, math.inf)
    return Cell(numbers.significant(numbers.exp(split.loss_increase)), _interval((numbers.exp(low), numbers.exp(high))))


def drop(split: Comparison) -> str | None:
    """What a network lost of the metric that `MaxDrop` looks at, without an interval; None without labels or a task."""
    metric = metrics.deciding(split)
    if metric is not None:
        return f"{metric.label} {metrics.change(metric.model_copy(update={'drop_interval': None}))}"
    return None if split.top1_drop is None else numbers.points(split.top1_drop)


def increase(split: Comparison) -> Cell:
    """By how much the loss rose, with its interval."""
    return Cell(numbers.significant(split.loss_increase), _interval(split.loss_increase_interval))


def _agreement(split: Comparison) -> Cell:
    return Cell(numbers.percent(split.agreement), numbers.percent_interval(split.agreement_interval))


def _mse(split: Comparison) -> Cell:
    return Cell(numbers.significant(split.mse), numbers.significant_interval(split.mse_interval))


def _cosine_distance(split: Comparison) -> Cell:
    interval = numbers.significant_interval(split.cosine_distance_interval)
    return Cell(numbers.significant(split.cosine_distance), interval)


def _differing(split: Comparison) -> Cell:
    return Cell(numbers.percent(split.differing), numbers.percent_interval(split.differing_interval))


def _kl(split: Comparison) -> Cell:
    return Cell(numbers.significant(split.kl), numbers.significant_interval(split.kl_interval))
