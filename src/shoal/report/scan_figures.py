"""The numbers of a scan a reader looks for first."""

from shoal.record import ScanRecord
from shoal.report import numbers, readings, scan_words
from shoal.report.figures import Figure


def scan_figures(record: ScanRecord) -> list[Figure]:
    """Trivial blocks, layers that matter, the whole network, the best score, as far as they were measured."""
    found = [_blocks(record), _layers(record), _quality(record), _score(record)]
    return [one for one in found if one is not None]


def _blocks(record: ScanRecord) -> Figure | None:
    if not record.blocks:
        return None
    found = readings.counts(record.blocks)
    return Figure(
        "Trivial blocks", f"{found['trivial']} of {len(record.blocks)}", f"{found['non-trivial']} are non-trivial"
    )


def _layers(record: ScanRecord) -> Figure | None:
    if not record.layers:
        return None
    found = readings.counts(record.layers)
    value = f"{found['non-trivial']} of {len(record.layers)}"
    return Figure("Non-trivial layers", value, f"{found['trivial']} are trivial")


def _quality(record: ScanRecord) -> Figure | None:
    one = record.baseline
    if numbers.known(one.top1):
        return Figure(f"Top-1, {one.split}", numbers.percent(one.top1), numbers.percent_interval(one.top1_interval))
    if numbers.known(one.loss):
        return Figure(f"Loss, {one.split}", numbers.significant(one.loss), f"nats, n = {numbers.count(one.n)}")
    return None


def _score(record: ScanRecord) -> Figure | None:
    best = next(iter(scan_words.by_correlation(record.scores)), None)
    if best is None or not numbers.known(best.correlation):
        return None
    return Figure("Best score", numbers.signed(best.correlation), best.name.replace("_", " "))
