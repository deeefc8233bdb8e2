import pytest
from recovered import make_recovery

from shoal.report.recovery import lead, recovery_section, rows


def said(**changes: object) -> dict[str, str]:
    return {label: f"{cell.value} | {cell.detail}" for label, cell in rows(make_recovery(**changes))}


def test_without_recovery_there_is_no_such_part() -> None:
    assert recovery_section(None) is None


def test_the_part_holds_the_curve_in_both_widths_where_there_is_one() -> None:
    part = recovery_section(make_recovery())
    assert set(part.plots) == {"wide", "narrow"}
    assert 'width="1000"' in part.plots["wide"]
    assert 'width="340"' in part.plots["narrow"]
    assert recovery_section(make_recovery(curve=[])).plots == {}


def test_the_table_says_what_was_won_and_how() -> None:
    assert said() == {
        "Divergence before": "0.0200 nats | 287 validation samples and, for inputs that can be mixed, as many mixtures "
        "of them",
        "Divergence after": "0.00800 nats | 60.0 % less; the same samples",
        "Steps": "150 | 19,200 training samples",
        "Time": "16 s | budget: 150 steps; evaluations included",
        "Learning rate": "0.3 | the largest stable one of 0.3, 0.1, 0.03 in a short test on copies",
        "Optimizer": "SGD | chosen by the type of network",
        "Weights kept": "averaged weights | of step 150",
        "Stopped because": "the budget was used up | ",
    }


def test_what_was_asked_is_said_to_be() -> None:
    found = said(settings={"rate": 0.05, "optimizer": "adamw"}, rate=0.05, rates_tried={}, optimizer="adamw")
    assert found["Learning rate"] == "0.05 | as requested"
    assert found["Optimizer"] == "AdamW | as requested"


def test_a_rate_that_was_not_tried_is_said_to_be_careful() -> None:
    assert (
        said(rates_tried={}, rate=0.02)["Learning rate"]
        == "0.02 | a safe default: the budget left no room for a search"
    )


def test_a_run_that_went_on_is_said_to_have() -> None:
    assert said(resumed=True)["Time"].endswith("; resumed after an interruption")


@pytest.mark.parametrize(
    ("stopped", "expected"),
    [
        ("early", "it no longer improved: 10 evaluations in a row were not better"),
        ("diverged", "it diverged; the last good weights were kept"),
    ],
)
def test_why_it_stopped(stopped: str, expected: str) -> None:
    assert said(stopped=stopped)["Stopped because"].startswith(expected)


def test_the_lead_tells_how_much_was_won() -> None:
    assert "60.0 % less than before recovery" in lead(make_recovery())
    assert "labels" not in lead(make_recovery())
    assert "to fit the labels" in lead(make_recovery(settings={"labels": 0.1}))


def test_a_cut_that_came_out_as_it_was_is_said_to_have() -> None:
    nothing = {"kept_step": 0, "kept": "the weights it began with", "divergence_after": 0.02}
    assert "so these were kept" in lead(make_recovery(**nothing))
    found = said(**nothing)
    assert found["Divergence after"].endswith("| unchanged; the same samples")
    assert found["Weights kept"] == "the weights it began with | no later weights were better"


def test_where_nothing_was_lost_no_way_is_told() -> None:
    nothing = {"stopped": "nothing", "steps": 0, "kept_step": 0, "divergence_before": 0.0, "divergence_after": 0.0}
    assert set(said(**nothing)) == {"Divergence before", "Divergence after", "Stopped because"}
    assert "nothing to recover" in lead(make_recovery(**nothing))
    assert recovery_section(make_recovery(**nothing, curve=[])).plots == {}


def test_what_the_loss_is_made_of() -> None:
    assert "plus the error of its features after 9 blocks" in recovery_section(make_recovery()).how
    assert "plus 64 times the error of its features" in recovery_section(make_recovery(features_weight=64.0)).how
    assert "features" not in recovery_section(make_recovery(features=0)).how
    assert "after 1 block," in recovery_section(make_recovery(features=1)).how
