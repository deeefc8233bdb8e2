import math

import pytest
from scanned import make_scan, one_sample, plain_chain, quality, scanned_blocks, unmeasured, with_second, without_labels

from shoal.report import scan_text


def test_headline_counts_verdicts_on_which_data() -> None:
    assert scan_text.headline(make_scan()) == (
        "9 of 27 residual blocks are trivial; 11 are non-trivial, 7 are undecided; on 400 test samples of digits"
    )


def test_headline_of_odd_scans() -> None:
    assert scan_text.headline(plain_chain()).startswith("No residual block detected; 1 of 9 layers is trivial; 8 are")
    assert scan_text.headline(one_sample()).startswith("0 of 27 residual blocks are trivial; 27 are undecided; on 1 ")
    assert "1 could not be measured" in scan_text.headline(unmeasured())
    assert scan_text.headline(make_scan(blocks=[], layers=[])).startswith("No residual block and no layer detected; ")


def test_the_most_and_the_least_important_are_named() -> None:
    most, least = scan_text.importance(make_scan())
    assert most == (
        "`stages.2.0` matters most: without it 48.00 points of top-1 are lost "
        "(95 % interval 42.30 to 53.70; KL 2.70 nats)."
    )
    assert least.startswith("`stages.0.1` and 5 others matter least: without them, one at a time, the answers stay")


def test_without_labels_the_answers_move() -> None:
    assert scan_text.importance(without_labels())[0].endswith("without it the answers diverge by 2.70 nats (KL).")


def test_a_gain_is_called_one() -> None:
    blocks = [block for block in scanned_blocks() if block.path in ("stages.0.0", "stages.0.6")]
    least = scan_text.importance(make_scan(blocks=blocks))[1]
    assert "0.60 points of top-1 are gained (95 % interval 1.56 gained to 0.36 lost" in least


def test_nobody_is_first_among_equals() -> None:
    assert scan_text.importance(make_scan(blocks=scanned_blocks()[1:2])) == []
    idle = [block for block in scanned_blocks() if block.ablations["block"].kl == 0]
    assert scan_text.importance(make_scan(blocks=idle)) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "±1.00 points of top-1."),
        ({"metric": "loss"}, "±0.0100 nats of the loss."),
        ({"metric": "kl"}, "±0.0100 nats of the divergence from the full network."),
    ],
)
def test_the_tolerance_has_its_unit(changes: dict, expected: str) -> None:
    assert expected in scan_text.margin(make_scan(**changes))


def test_scores_are_sorted_by_correlation_unknown_ones_last() -> None:
    scores = [quality("a", None, None), quality("b", -0.5, None), quality("c", 0.9, None), quality("d", math.nan, None)]
    assert [one.name for one in scan_text.by_correlation(scores)] == ["c", "b", "a", "d"]


@pytest.mark.parametrize(
    ("rho", "interval", "expected"),
    [
        (0.97, (0.92, 0.99), "almost as the true damage"),
        (0.8, (0.6, 0.9), "A good first estimate"),
        (0.5, (0.2, 0.7), "A rough indication"),
        (0.3, (0.1, 0.5), "not a guide"),
        (0.3, (-0.1, 0.6), "a random order"),
        (-0.8, (-0.9, -0.6), "in reverse"),
        (1.0, None, "no interval"),
        (None, None, "Not known"),
        (math.nan, None, "Not known"),
    ],
)
def test_a_correlation_in_words(rho: float | None, interval: tuple | None, expected: str) -> None:
    assert expected in scan_text.meaning(quality("x", rho, interval))


def test_the_second_data_set_in_words() -> None:
    assert "6 are trivial on digits and non-trivial on digits as JPEG" in scan_text.second(with_second())
    full = make_scan()
    same = with_second().also.model_copy(update={"blocks": full.blocks})
    text = scan_text.second(make_scan(also=same))
    assert text == "Every ablation has the same verdict on digits and on digits as JPEG."
    assert scan_text.second(full) == ""


def test_methods_are_those_that_were_used() -> None:
    names = [name for name, _ in scan_text.methods(make_scan())]
    assert "Top-1 lost" in names
    assert "unit" in [name for name, _ in scan_text.methods(unmeasured())]
    assert not {"unit", "block", "Correlation"} & {name for name, _ in scan_text.methods(plain_chain())}
    said = " ".join(how for _, how in scan_text.methods(make_scan()))
    for method in ("Tango", "t interval", "Bonferroni", "Spearman", "Fisher's z", "all 110 comparisons"):
        assert method in said


def test_the_whole_network_in_words() -> None:
    assert scan_text.baseline(make_scan()) == (
        "top-1 98.0 % (95 % interval 96.1 – 99.0 %), loss 0.100 nats; test, n = 400"
    )
    assert scan_text.baseline(without_labels()) == "no labels, so no accuracy; test, n = 400"


def test_counts_and_claim() -> None:
    assert scan_text.tally({"trivial": 2, "non-trivial": 1}) == "1 non-trivial, 0 undecided, 2 trivial"
    assert scan_text.channel_hypothesis(make_scan()).endswith("25 of the 52 others.")
    assert scan_text.channel_hypothesis(make_scan(claim=None)) == ""
