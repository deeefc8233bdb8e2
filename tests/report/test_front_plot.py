import math
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from handmade import make_blocks
from planned import make_planning, make_point, planned_record

from shoal.record import FrontPoint, Record
from shoal.report import front_plot
from shoal.report.plans import plans


def root_of(record: Record, width: float = 1000.0) -> ElementTree.Element:
    return ElementTree.fromstring(front_plot.plot(plans(record), record.planning, width, 340.0, "front"))


def with_front(changes: list[dict[str, float]], **more: object) -> Record:
    point = make_point(make_blocks(), 8, 24)
    front = [FrontPoint.model_validate({**point.model_dump(), **one}) for one in changes]
    return planned_record(front=front, **more)


def points(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [link for link in root.iter("a") if link.get("tabindex") is None]


def dots(root: ElementTree.Element) -> list[tuple[float, float]]:
    found = [c for link in points(root) for c in link.iter("circle") if c.get("class") == "dot"]
    return [(float(one.get("cx")), float(one.get("cy"))) for one in found]


def texts(root: ElementTree.Element) -> list[str]:
    return ["".join(one.itertext()) for one in root.iter("text")]


@pytest.mark.parametrize("width", [340.0, 1000.0])
def test_every_plan_is_a_point_that_leads_to_its_picture(width: float) -> None:
    root = root_of(planned_record(), width)
    assert [link.get("href") for link in points(root)] == [f"#plan-{n}" for n in range(1, 25)]
    assert points(root)[6].find("title").text.startswith("Plan 7\n")
    for x, y in dots(root):
        assert 0 < x < width
        assert 0 < y < 340
    assert root.get("role") == "group"


def test_less_latency_is_further_left_and_more_damage_further_up() -> None:
    places = dots(root_of(planned_record()))
    assert [x for x, _ in places] == sorted(x for x, _ in places)
    assert [y for _, y in places] == sorted(y for _, y in places)


def test_damages_over_decades_are_logarithmic_and_zero_has_its_place() -> None:
    damages = [1.0, 0.1, 0.01, 0.001, 0.0]
    record = with_front([{"latency_ms": 50.0 + i, "damage": one} for i, one in enumerate(damages)], rounds=[])
    rows = [y for _, y in dots(root_of(record))]
    steps = [below - above for above, below in pairwise(rows[:4])]
    assert steps == pytest.approx([steps[0]] * 3, abs=0.1)
    assert rows[4] > rows[3]
    assert {"1", "10⁻¹", "10⁻²", "0"} <= set(texts(root_of(record)))


def test_damages_of_one_size_are_plain() -> None:
    record = with_front([{"latency_ms": 50.0 + i, "damage": one} for i, one in enumerate([1.0, 2.0, 3.0])], rounds=[])
    assert not any("⁻" in text for text in texts(root_of(record)))


def test_the_axis_says_shares_and_milliseconds() -> None:
    assert {"50 %", "53.1 ms"} <= set(texts(root_of(planned_record())))


def test_built_plans_stand_where_they_were_measured() -> None:
    record = planned_record()
    measured = record.planning.rounds[1]
    on_front = {"latency_ms": measured.latency_measured_ms, "damage": measured.damage_measured}
    root = root_of(record.model_copy(update={"planning": with_front([on_front]).planning}))
    diamonds = {one.get("class"): one.get("d") for one in root.iter("path")}
    assert set(diamonds) == {"built", "built chosen"}
    ((x, y),) = dots(root)
    assert diamonds["built chosen"].startswith(f"M{x:.2f} {y - 7:.2f}l")


def test_the_chosen_one_leads_to_its_plan_and_to_what_became_of_it() -> None:
    root = root_of(planned_record())
    shortcuts = [link for link in root.iter("a") if link.get("tabindex") == "-1"]
    assert [link.get("href") for link in shortcuts] == ["#plan-8", "#plan-8"]
    assert [one.get("class") for one in root.iter("line") if one.get("class") in {"guess", "refit"}] == [
        "guess",
        "guess",
        "refit",
    ]


def test_nothing_is_said_of_the_end_where_no_round_was_chosen() -> None:
    planning = make_planning(make_blocks())
    root = root_of(planned_record(rounds=planning.rounds[:1]))
    assert len(list(root.iter("a"))) == 24
    assert "refit" not in {one.get("class") for one in root.iter("line")}


def test_numbers_of_points_do_not_stand_on_each_other() -> None:
    close = with_front([{"latency_ms": 50.0 + 0.01 * i, "damage": 1 - 0.001 * i} for i in range(80)], rounds=[])
    shown = [one for one in root_of(close).iter("text") if "halo" in one.get("class", "")]
    assert 10 < len(shown) < 80
    places = [(float(one.get("x")), float(one.get("y"))) for one in shown]
    assert all(abs(a - c) >= 7 or abs(b - d) >= 12 for i, (a, b) in enumerate(places) for c, d in places[:i])


def test_the_number_of_the_chosen_one_is_always_there() -> None:
    close = [{"latency_ms": 50.0 + 0.01 * i, "damage": 1 - 0.001 * i} for i in range(80)]
    root = root_of(with_front(close, rounds=[], picked=2), 340.0)
    numbers = {one.text: one.get("class") for one in root.iter("text") if "halo" in one.get("class", "")}
    assert numbers["2"] == "tick halo strong"
    assert [text for text, style in numbers.items() if "strong" in style] == ["2"]


def test_what_has_no_place_is_left_out() -> None:
    record = with_front([{"damage": math.nan}, {"damage": 0.5}], damage_final=math.nan)
    root = root_of(record)
    assert [link.get("href") for link in points(root)] == ["#plan-2"]
    assert "refit" not in {one.get("class") for one in root.iter("line")}
    nothing = with_front([{"damage": math.nan}])
    assert front_plot.plot(plans(nothing), nothing.planning, 1000.0, 340.0, "front") == ""
    unknown = planned_record(original_ms=0.0)
    assert front_plot.plot(plans(unknown), unknown.planning, 1000.0, 340.0, "front") == ""


def test_the_legend_names_every_sign() -> None:
    assert len(front_plot.legend()) == 4
    assert all("<svg" in sign and meaning for sign, meaning in front_plot.legend())


def test_the_end_is_before_recovery_where_there_was_one() -> None:
    assert front_plot.legend()[-1][1] == "the same in the end, its stand-ins refitted"
    assert front_plot.legend(recovered=True)[-1][1] == "the same in the end, its stand-ins refitted, before recovery"
    record = planned_record()
    given = plans(record), record.planning, 600, 300, "f"
    assert "The network in the end\n" in front_plot.plot(*given)
    assert "The network in the end, before recovery\n" in front_plot.plot(*given, recovered=True)
