"""The sentences about a training run that the page and the terminal share."""

from shoal.record import Network
from shoal.report import numbers, speed
from shoal.report.figures import Figure
from shoal.report.tables import Cell, Row
from shoal.training import TrainRecord


def headline(record: TrainRecord) -> str:
    """What came of the training, in one plain sentence."""
    lost, total = len(record.lost), len(record.blocks)
    said = [f"{lost} of {total} blocks lost in training" if record.gated else f"{total} blocks trained without gates"]
    plain = record.settled.plain.quality
    if plain.top1 is not None:
        said.append(f"top-1 {numbers.percent(plain.top1)} on {numbers.count(plain.n)} test samples")
    if lost:
        whole, after = record.settled.whole.cost, record.settled.plain.cost
        said.append(
            f"parameters {numbers.less(whole.params, after.params)}, MACs {numbers.less(whole.macs, after.macs)}"
        )
    return "; ".join(said)


def lead(record: TrainRecord) -> list[str]:
    """Sentences under the headline."""
    settled, found = record.settled, []
    if record.lost:
        same = {"identical": "by construction", "equal": "within the tolerance", "different": ""}
        verdict = settled.certificate.verdict
        found.append(
            f"The plain network is {verdict} {same[verdict]} to the whole network with frozen gates.".replace("  ", " ")
        )
    if settled.live is not None:
        found.append(live_gates(record))
    return found


def live_gates(record: TrainRecord) -> str:
    """What gates that were not frozen would do on test."""
    live = record.settled.live
    if live is None:
        return ""
    top1 = f": top-1 {numbers.percent(live.quality.top1)}" if live.quality.top1 is not None else ""
    if not live.batches_with_an_opening:
        return f"With live gates none of the lost blocks would come back on {live.batches} test mini-batches{top1}."
    return (
        f"With live gates lost blocks would come back on {live.batches_with_an_opening} of {live.batches} test "
        f"mini-batches of {live.batch_size}{top1}. That is why gates are frozen."
    )


def beside(record: TrainRecord) -> list[str]:
    """One line for each run this one is held against."""
    found = []
    for one in record.beside:
        interval = numbers.points_interval(one.comparison.top1_drop_interval)
        found.append(
            f"beside it, {one.name} (epsilon {one.epsilon:g}): {one.lost} blocks lost, top-1 "
            f"{numbers.percent(one.quality.top1)}; this run against it: {numbers.points(one.comparison.top1_drop)} "
            f"({interval})"
        )
    return found


def figures(record: TrainRecord) -> list[Figure]:
    """The numbers a reader looks for first."""
    plain, last = record.settled.plain, record.rows[-1] if record.rows else None
    found = [Figure("Blocks lost", f"{len(record.lost)} of {len(record.blocks)}", f"{plain.blocks} are left")]
    if plain.quality.top1 is not None:
        interval = numbers.percent_interval(plain.quality.top1_interval)
        found.append(Figure("Top-1, test", numbers.percent(plain.quality.top1), interval))
    saved = numbers.less(record.settled.whole.cost.macs, plain.cost.macs)
    found.append(Figure("MACs", numbers.amount(plain.cost.macs), saved))
    if last is not None:
        first = record.rows[0].seconds
        found.append(Figure("An epoch", numbers.duration(last.seconds), f"the first took {numbers.duration(first)}"))
    return found


def rows(record: TrainRecord) -> list[Row]:
    """The whole network with frozen gates against the plain one."""
    a, b = record.settled.whole, record.settled.plain
    found = [Row("Top-1 accuracy", f"test, n = {numbers.count(a.quality.n)}, 95 % interval", _top1(a), _top1(b), "")]
    found.append(_amounts("Residual blocks", "", a.blocks, b.blocks))
    found.append(_amounts("Parameters", "all of them, shortcuts and head included", a.cost.params, b.cost.params))
    found.append(_amounts("MACs", f"one sample of {numbers.shape(a.cost.input_shape)}", a.cost.macs, b.cost.macs))
    for one, other in zip(a.latency, b.latency, strict=True):
        before, after = (Cell(numbers.milliseconds(part.median_ms)) for part in (one, other))
        found.append(
            Row(
                f"Latency, batch {one.batch}",
                f"median; {one.device}, {one.threads} threads",
                before,
                after,
                speed.words(speed.Pair(one, other)),
            )
        )
    return found


def _amounts(label: str, note: str, before: int, after: int) -> Row:
    return Row(label, note, Cell(numbers.amount(before)), Cell(numbers.amount(after)), numbers.less(before, after))


def _top1(network: Network) -> Cell:
    return Cell(numbers.percent(network.quality.top1), numbers.percent_interval(network.quality.top1_interval))
