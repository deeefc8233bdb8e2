import pytest
from recovered import make_recovery

from shoal.report.recovery_part import lead, recovery_part, rows


def said(**changes: object) -> dict[str, str]:
    return {label: f"{cell.value} | {cell.detail}" for label, cell in rows(make_recovery(**changes))}


def test_without_recovery_there_is_no_such_part() -> None:
    assert recovery_part(None) is None


def test_the_part_holds_the_curve_in_both_widths_where_there_is_one() -> None:
    part = recovery_part(make_recovery())
    assert set(part.pictures) == {"wide", "narrow"}
    assert 'width="1000"' in part.pictures["wide"]
    assert 'width="340"' in part.pictures["narrow"]
    assert recovery_part(make_recovery(curve=[])).pictures == {}


def test_the_table_says_what_was_won_and_how() -> None:
    assert said() == {
        "Divergence before": "0.0200 nats | 287 validation samples and, where they can be blended, as many blends",
        "Divergence after": "0.00800 nats | 60.0 % less; the same samples",
        "Steps": "150 | 19,200 samples were seen",
        "Time": "16 s | budget: 150 steps; all looks included",
        "Learning rate": "0.3 | the highest that destroyed nothing in a short test on copies, of 0.3, 0.1, 0.03",
        "Optimizer": "SGD | chosen by the kind of network",
        "Weights kept": "averaged weights | of step 150",
        "Stopped because": "the budget was used up | ",
    }


def test_what_was_asked_is_said_to_be() -> None:
    found = said(settings={"rate": 0.05, "optimizer": "adamw"}, rate=0.05, rates_tried={}, optimizer="adamw")
    assert found["Learning rate"] == "0.05 | as asked"
    assert found["Optimizer"] == "AdamW | as asked"


def test_a_rate_that_was_not_tried_is_said_to_be_careful() -> None:
    assert (
        said(rates_tried={}, rate=0.02)["Learning rate"] == "0.02 | a careful one: the budget left no room to try any"
    )


def test_a_run_that_went_on_is_said_to_have() -> None:
    assert said(resumed=True)["Time"].endswith("; it went on after an interruption")


@pytest.mark.parametrize(
    ("stopped", "expected"),
    [
        ("early", "nothing more was won: 10 looks in a row were no better"),
        ("diverged", "it diverged; the last good weights are kept"),
    ],
)
def test_why_it_stopped(stopped: str, expected: str) -> None:
    assert said(stopped=stopped)["Stopped because"].startswith(expected)


def test_the_lead_tells_how_much_was_won() -> None:
    assert "60.0 % less than after the cut" in lead(make_recovery())
    assert "labels" not in lead(make_recovery())
    assert "by the labels too" in lead(make_recovery(settings={"labels": 0.1}))


def test_a_cut_that_came_out_as_it_was_is_said_to_have() -> None:
    nothing = {"kept_step": 0, "kept": "the weights it began with", "divergence_after": 0.02}
    assert "the cut came out as it was" in lead(make_recovery(**nothing))
    found = said(**nothing)
    assert found["Divergence after"].endswith("| unchanged; the same samples")
    assert found["Weights kept"] == "the weights it began with | nothing better was found"


def test_where_nothing_was_lost_no_way_is_told() -> None:
    nothing = {"stopped": "nothing", "steps": 0, "kept_step": 0, "divergence_before": 0.0, "divergence_after": 0.0}
    assert set(said(**nothing)) == {"Divergence before", "Divergence after", "Stopped because"}
    assert "nothing had to be won back" in lead(make_recovery(**nothing))
    assert recovery_part(make_recovery(**nothing, curve=[])).pictures == {}


def test_what_the_loss_is_made_of() -> None:
    assert "and how far off its features behind 9 blocks were" in recovery_part(make_recovery()).how
    assert "and 64 times how far off its features" in recovery_part(make_recovery(features_weight=64.0)).how
    assert "features" not in recovery_part(make_recovery(features=0)).how
    assert "behind 1 block were" in recovery_part(make_recovery(features=1)).how
