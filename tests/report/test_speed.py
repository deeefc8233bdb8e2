import math

from handmade import latencies, make_record

from shoal.record import Record
from shoal.report import speed


def with_latency(record: Record, before: list, after: list) -> Record:
    original = record.original.model_copy(update={"latency": before})
    compressed = record.compressed.model_copy(update={"latency": after})
    return record.model_copy(update={"original": original, "compressed": compressed})


def test_pairs_match_by_batch_whatever_the_order(record: Record) -> None:
    swapped = with_latency(record, latencies(1.0), latencies(0.5)[::-1])
    found = speed.pairs(swapped)
    assert [pair.batch for pair in found] == [1, 128]
    assert [speed.words(pair) for pair in found] == ["2.00 times faster"] * 2


def test_timings_taken_under_other_conditions_are_not_compared(record: Record) -> None:
    other = [one.model_copy(update={"threads": 1}) for one in latencies(0.5)]
    found = speed.pairs(with_latency(record, latencies(1.0), other))
    assert len(found) == 4
    assert all(pair.speedup is None and speed.words(pair) == "–" for pair in found)


def test_overlapping_quartiles_are_not_called_faster(record: Record) -> None:
    (pair, _) = speed.pairs(with_latency(record, latencies(1.0), latencies(0.99)))
    assert speed.words(pair) == "no difference beyond noise"


def test_slower_is_said(record: Record) -> None:
    (pair, _) = speed.pairs(with_latency(record, latencies(1.0), latencies(1.25)))
    assert speed.words(pair) == "1.25 times slower"


def test_a_median_that_is_no_number_gives_no_speedup() -> None:
    one = latencies(1.0)[0]
    for median in (0.0, math.nan):
        broken = one.model_copy(update={"median_ms": median})
        assert speed.Pair(one, broken).speedup is None


def test_conditions_are_named() -> None:
    (pair, _) = speed.pairs(make_record())
    assert speed.conditions(pair) == "cpu, float32, 2 threads, 40 runs"
