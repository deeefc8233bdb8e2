import math

import pytest
from handmade import language_record, latencies, make_record

from shoal.record import LatencyRatio, MetricComparison, Record
from shoal.report import comparison, metrics, render, text
from shoal.report.compress import key_figures


def test_every_measure_has_its_row(record: Record) -> None:
    rows = {row.label: row for row in comparison.before_after(record)}
    assert list(rows) == [
        "Top-1 accuracy",
        "Loss",
        "Latency, batch 1",
        "Latency, batch 128",
        "Residual blocks",
        "Parameters",
        "MACs",
        "Weights on disk",
    ]
    assert rows["Top-1 accuracy"].original == comparison.Cell("98.8 %", "97.1 – 99.5 %")
    assert rows["Top-1 accuracy"].change == "lost 0.25 points"
    assert rows["Residual blocks"].change == "14 fewer"
    assert rows["Latency, batch 128"].compressed == comparison.Cell("110 ms", "109 – 113 ms")


def test_rows_about_labels_vanish_with_the_labels(bare: Record) -> None:
    labels = [row.label for row in comparison.before_after(bare)]
    assert labels == ["Residual blocks", "Parameters", "MACs", "Weights on disk"]
    assert [row.label for row in comparison.paired(bare)] == ["Agreement", "Divergence"]


def test_validation_stands_beside_test(record: Record) -> None:
    assert [one.split for one in comparison.comparisons(record)] == ["test", "validation"]
    (drop, sides, p, *_) = comparison.paired(record)
    assert [cell.value for cell in drop.cells] == ["lost 0.25 points", "lost 0.35 points"]
    assert drop.cells[0].detail == "0.88 gained to 1.40 lost"
    assert sides.cells[0].value == "2 lost, 1 gained"
    assert p.cells[0].value == "p = 1.00"


def test_a_language_model_has_perplexity_instead_of_accuracy() -> None:
    rows = {row.label: row for row in comparison.before_after(language_record())}
    assert list(rows)[:2] == ["Perplexity", "Loss"]
    perplexity = rows["Perplexity"]
    assert perplexity.note == "test, n = 8, 4,088 tokens, 95 % interval"
    assert perplexity.original == comparison.Cell("22.5", "20.3 – 25.0")
    assert perplexity.compressed == comparison.Cell("24.7", "22.0 – 27.9")
    assert perplexity.change == "9.9 % more"
    assert rows["Loss"].compressed == comparison.Cell("3.21", "3.09 – 3.33")
    assert rows["Loss"].change == "0.0942 more"


def test_perplexities_are_compared_on_the_same_tokens() -> None:
    rows = {row.label: row for row in comparison.paired(language_record())}
    assert list(rows) == ["Perplexity ratio", "Loss increase", "Agreement", "Divergence"]
    assert rows["Perplexity ratio"].cells == [comparison.Cell("1.10", "1.07 – 1.12")]
    assert rows["Loss increase"].cells == [comparison.Cell("0.0942", "0.0721 – 0.116")]


def test_a_single_sequence_has_no_interval() -> None:
    record = language_record()
    alone = record.comparison.model_copy(update={"loss_increase_interval": (-math.inf, math.inf)})
    assert comparison.perplexity_ratio(alone) == comparison.Cell("1.10", "")
    assert comparison.perplexity_ratio(record.comparison) == comparison.Cell("1.10", "1.07 – 1.12")
    quality = record.original.quality.model_copy(update={"perplexity_interval": (0.0, math.inf)})
    one = record.model_copy(update={"original": record.original.model_copy(update={"quality": quality})})
    assert comparison.before_after(one)[0].original == comparison.Cell("22.5", "")


def with_latency(record: Record, before: list, after: list) -> Record:
    original = record.original.model_copy(update={"latency": before})
    compressed = record.compressed.model_copy(update={"latency": after})
    return record.model_copy(update={"original": original, "compressed": compressed})


def test_pairs_match_by_batch_whatever_the_order(record: Record) -> None:
    swapped = with_latency(record, latencies(1.0), latencies(0.5)[::-1])
    found = comparison.latency_pairs(swapped)
    assert [pair.batch for pair in found] == [1, 128]
    assert [comparison.speed_change(pair) for pair in found] == ["2.00 times faster"] * 2


def test_timings_taken_under_other_conditions_are_not_compared(record: Record) -> None:
    other = [one.model_copy(update={"threads": 1}) for one in latencies(0.5)]
    found = comparison.latency_pairs(with_latency(record, latencies(1.0), other))
    assert len(found) == 4
    assert all(pair.speedup is None and comparison.speed_change(pair) == "–" for pair in found)


def test_overlapping_quartiles_are_not_called_faster(record: Record) -> None:
    (pair, _) = comparison.latency_pairs(with_latency(record, latencies(1.0), latencies(0.99)))
    assert comparison.speed_change(pair) == "no difference beyond noise"


def test_slower_is_said(record: Record) -> None:
    (pair, _) = comparison.latency_pairs(with_latency(record, latencies(1.0), latencies(1.25)))
    assert comparison.speed_change(pair) == "1.25 times slower"


def test_a_median_that_is_no_number_gives_no_speedup() -> None:
    one = latencies(1.0)[0]
    for median in (0.0, math.nan):
        broken = one.model_copy(update={"median_ms": median})
        assert comparison.LatencyPair(one, broken).speedup is None


def test_conditions_are_named() -> None:
    (pair, _) = comparison.latency_pairs(make_record())
    assert comparison.conditions(pair) == "cpu, float32, 2 threads, 40 runs"


def measured_ratio(ratio, low, high, **more):
    return LatencyRatio(**{"ratio": ratio, "low": low, "high": high, "rounds": 150, "precision": 0.01, **more})


@pytest.mark.parametrize(
    ("ratio", "change", "noise"),
    [
        (measured_ratio(0.61, 0.607, 0.613), "1.64 times faster, timed in pairs", False),
        (measured_ratio(0.78, 0.77, 0.79), "1.28 times faster", False),
        (measured_ratio(0.99, 0.97, 1.01), "no difference beyond noise", True),
        (measured_ratio(1.25, 1.24, 1.26), "1.25 times slower, timed in pairs", False),
    ],
)
def test_a_ratio_of_pairs_is_believed_rather_than_medians(ratio, change, noise):
    compressed = [one.model_copy(update={"ratio": ratio}) for one in latencies(0.8)]
    record = with_latency(make_record(), latencies(1.0), compressed)
    for pair in comparison.latency_pairs(record):
        assert comparison.speed_change(pair) == change
        assert pair.within_noise is noise
    [speed] = [figure for figure in key_figures(record) if figure.name.startswith("Speed")]
    assert (speed.detail == "timed in pairs") is change.endswith("timed in pairs")
    rows = [row for row in comparison.before_after(record) if row.label.startswith("Latency")]
    assert all(f"{ratio} in 150 pairs" in row.note for row in rows)
    assert ("no speed difference" if noise else str(ratio)) in text.headline(record)


def test_what_a_ratio_says_of_itself():
    assert str(measured_ratio(0.61, 0.607, 0.613)) == "0.61 (0.607 to 0.613) of the original's latency"
    assert str(LatencyRatio(ratio=0.5, low=0.5, high=0.5)) == "0.5 of the original's latency"
    wide = measured_ratio(0.5, 0.45, 0.55)
    assert (wide.width, wide.is_precise) == (pytest.approx(0.2), False)
    compressed = [one.model_copy(update={"ratio": wide}) for one in latencies(0.8)]
    rows = comparison.before_after(with_latency(make_record(), latencies(1.0), compressed))
    assert any("20.0 % wide where 1% was asked for" in row.note for row in rows)


def test_figures_by_group_stand_on_the_page_and_in_the_terminal(record: Record) -> None:
    metric = MetricComparison(
        name="relative_error",
        label="Squared error",
        unit="%",
        better="lower",
        against="original",
        n=30,
        compressed=0.05,
        compressed_interval=(0.04, 0.06),
        groups={"1": 0.098, "500": 0.05, "981": 0.012},
        grouped_by="timestep",
    )
    assert metrics.groups_line(metric) == "Squared error, by timestep: 1.2 % at 981 to 9.8 % at 1"
    better = metric.model_copy(update={"better": "higher"})
    assert metrics.groups_line(better).endswith("9.8 % at 1 to 1.2 % at 981")
    assert metrics.groups_line(metric.model_copy(update={"groups": {}})) == ""
    measured = record.comparison.model_copy(update={"metrics": [metric]})
    page = render(record.model_copy(update={"comparison": measured}))
    assert "<h3>By timestep</h3>" in page
    assert page.index(">1</th>") < page.index(">500</th>") < page.index(">981</th>")
    assert "By timestep" not in render(record)
