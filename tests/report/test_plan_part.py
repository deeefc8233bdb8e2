import math

from handmade import make_record
from planned import planned_record
from recovered import recovered_record

from shoal.report.plan_part import plan_part


def test_a_record_without_planning_has_no_such_part() -> None:
    assert plan_part(make_record()) is None


def test_every_plan_has_a_card_with_pictures_and_neighbours() -> None:
    part = plan_part(planned_record())
    assert [card.plan.number for card in part.cards] == list(range(1, 25))
    assert [(card.before, card.after) for card in part.cards[:2]] == [(None, 2), (1, 3)]
    assert (part.cards[-1].before, part.cards[-1].after) == (23, None)
    assert all("<svg" in text for card in part.cards for text in card.pictures.values())
    assert len({card.pictures["wide"] for card in part.cards}) == 24
    assert part.cards[7].spans[0] == (("stages.1.2", "stages.1.5", " (4 in a row)"), "conv3")


def test_without_blocks_the_spans_are_left_as_text() -> None:
    record = planned_record().model_copy(update={"blocks": []})
    part = plan_part(record)
    assert not any(text for card in part.cards for text in card.pictures.values())
    assert part.signs == []
    assert part.cards[7].spans[1][1] == "conv1"


def test_without_numbers_there_is_no_plot() -> None:
    front = [point.model_copy(update={"damage": math.nan}) for point in planned_record().planning.front]
    part = plan_part(planned_record(front=front))
    assert part.plots == {}
    assert len(part.cards) == 24


def test_notes_are_only_there_for_what_is_unusual() -> None:
    assert plan_part(planned_record()).notes == []
    assert len(plan_part(planned_record(picked=2, latency_source="a file")).notes) == 2


def test_a_plan_that_recovered_says_what_its_end_is() -> None:
    part = plan_part(recovered_record())
    assert "in the end, before recovery," in part.refitting
    assert part.legend[-1][1].endswith("before recovery")
    assert all("in the end, before recovery" in drawn for drawn in part.plots.values())
    assert "recovery" not in plan_part(planned_record()).refitting
