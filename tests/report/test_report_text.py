import pytest
from handmade import language_record, latencies, make_record

from shoal.record import Certificate, Quality, Record
from shoal.report import text


def test_headline_says_what_was_done(record: Record) -> None:
    assert text.headline(record) == (
        "14 of 27 blocks removed; top-1 98.8 % → 98.5 % on 400 test images; 1.92 times faster at batch 128"
    )


def test_headline_without_labels_speaks_of_agreement(record: Record) -> None:
    quality = Quality(split="test", n=400)
    original = record.original.model_copy(update={"quality": quality, "latency": []})
    record = record.model_copy(update={"original": original})
    line = text.headline(record)
    assert line == "14 of 27 blocks removed; same answer as the original on 99.0 % of 400 test images"


def test_headline_of_a_language_model_speaks_of_perplexity() -> None:
    assert "; perplexity 22.5 → 24.7 on 4,088 tokens of 8 test sequences; " in text.headline(language_record())


def test_headline_when_nothing_could_be_removed(record: Record) -> None:
    compressed = record.compressed.model_copy(update={"latency": latencies(1.0)})
    line = text.headline(record.model_copy(update={"removed": [], "compressed": compressed}))
    assert line.startswith("None of 27 blocks removed; ")
    assert line.endswith("no speed difference beyond noise at batch 128")


def test_headline_says_when_nothing_changed(record: Record) -> None:
    same = record.certificate.model_copy(update={"verdict": "identical", "bitwise": True})
    line = text.headline(record.model_copy(update={"certificate": same}))
    assert line.startswith("14 of 27 blocks removed; the same function, bit for bit; top-1 98.8 %")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"max_drop": 1.0}, "Lose at most 1.00 points of the metric on validation"),
        ({"latency": 0.5}, "Latency at most 50.0 % of the original"),
        ({"latency": "12ms"}, "Latency at most 12ms"),
        ({"params": 3_000_000}, "Parameters at most 3.00 M"),
        ({"exact": True}, "Remove only what leaves the function unchanged"),
        ({"new_thing": "x"}, "New thing: x"),
        ({"remove": None}, "No goal"),
        ({}, "No goal"),
    ],
)
def test_goal(asked: dict, expected: str) -> None:
    assert text.goal(asked) == expected


def test_a_count_of_blocks_is_a_whole_number() -> None:
    assert text.goal({"remove": 8}) == "Remove 8 blocks"
    assert text.goal({"remove": 1}) == "Remove 1 block"


@pytest.mark.parametrize(
    ("verdict", "bitwise", "expected"),
    [
        ("identical", True, "The outputs were bitwise equal on 400 samples."),
        (
            "equal",
            False,
            "The largest difference between the outputs was 0.000100 on 400 samples; the tolerance was 0.0010.",
        ),
        (
            "different",
            False,
            "The outputs differ by up to 0.000100 on 400 samples, at logit 3; the tolerance was 0.0010.",
        ),
    ],
)
def test_evidence(verdict: str, bitwise: bool, expected: str) -> None:
    certificate = Certificate(
        verdict=verdict, max_abs_diff=1e-4, where="logit 3", tolerance=1e-3, n=400, bitwise=bitwise
    )
    assert text.evidence(certificate) == expected


def test_single_units_are_counted_apart_from_blocks():
    units = ["stages.0.0#1", "stages.0.1#0"]
    both = text.headline(make_record(removed_units=units))
    assert "blocks and 2 single units removed" in both
    assert text.headline(make_record(removed=[], removed_units=units[:1])).startswith(
        "1 single unit removed from 27 blocks"
    )


def test_a_goal_in_units():
    asked = {"remove": 8, "grain": "unit"}
    assert text.goal(asked) == "Remove 8 units, counting the attention and the MLP of a block separately"
