import math
import re
import subprocess
import sys
import warnings
from itertools import pairwise

import pytest
from drawing import Drawing
from handmade import make_blocks, make_steps
from planned import make_planning, make_point, planned_record
from recovered import CURVE, make_recovery
from trained import make_rows

from shoal.record import FrontPoint, Record
from shoal.report.damage import KL, Damage
from shoal.report.plan import plans_of
from shoal.report.plots import curves, front, scatter
from shoal.report.plots.figure import Plot, linear_ticks
from shoal.report.plots.scatter import Point

SIZES = ("wide", "narrow")


def scaled(values: list[float], which: str = "y", **options: object) -> tuple[list[str], list[float]]:
    """The labels of an axis, and the places of values on it in pixels."""
    with Plot(300, 200) as drawing:
        axes = drawing.axes(50, 20, 290, 180)
        drawing.scale(axes, which, values, **options)
        places = [drawing.pixel(axes, 1.0, value)[1] for value in values]
        drawn = Drawing(drawing.svg("s", "name", "what it shows"))
        return drawn.texts("tick"), places


class TestFigure:
    def test_it_has_a_name_and_a_description_and_no_style_of_its_own(self) -> None:
        with Plot(300, 200) as drawing:
            axes = drawing.axes(50, 20, 290, 180)
            drawing.add(drawing.line(axes, [(0, 0), (1, 1)], "curve"))
            drawing.text(5, 10, "a <b> & $x$", "soft")
            text = drawing.svg("mine", "<name>", "what & how")
        root = Drawing(text).root
        assert (root.get("role"), root.get("aria-labelledby")) == ("img", "mine-title mine-desc")
        assert (root.find("title").text, root.find("desc").text) == ("<name>", "what & how")
        assert Drawing(text).texts() == ["a <b> & $x$"]
        assert not re.search(r"style=|font-|#[0-9a-f]{6}|xmlns|clip-path|<metadata|\d\.\d{3}", text)

    def test_marks_of_one_group_share_a_title_and_a_link(self) -> None:
        with Plot(300, 200) as drawing:
            axes = drawing.axes(50, 20, 290, 180)
            marks = drawing.marker(axes, 0.5, 0.5, 20, "reach"), drawing.marker(axes, 0.5, 0.5, 8, "dot")
            drawing.add(*marks, title="a\nb\x1b", href="#there", focusable=False)
            drawn = Drawing(drawing.svg("mine", "name", ""))
        (link,) = drawn.root.iter("a")
        assert (link.get("href"), link.get("tabindex"), link.find("title").text) == ("#there", "-1", "a\nb ")
        assert [group.get("class") for group in link.findall("g")] == ["reach", "dot"]
        assert drawn.markers("dot") == [(170.0, 100.0)]
        ids = {element.get("id") for element in drawn.root.iter() if element.get("id")}
        assert all(name.startswith("mine-") for name in ids)
        assert all(use.get("href")[1:] in ids for use in drawn.root.iter("use"))

    def test_the_same_plot_is_the_same_text_whatever_the_user_has_set(self) -> None:
        import matplotlib

        once = curves.recovery_plot(make_recovery(), "wide")
        with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30, "lines.linewidth": 9, "axes.grid": True}):
            before = dict(matplotlib.rcParams)
            assert curves.recovery_plot(make_recovery(), "wide") == once
            assert dict(matplotlib.rcParams) == before

    def test_an_error_inside_leaves_the_settings_of_the_user(self) -> None:
        import matplotlib

        before = dict(matplotlib.rcParams)
        with pytest.raises(ZeroDivisionError), Plot(300, 200):
            raise ZeroDivisionError
        assert dict(matplotlib.rcParams) == before

    def test_matplotlib_is_imported_with_the_first_plot_and_pyplot_never(self) -> None:
        code = """
import sys
import shoal.report
assert not {"matplotlib", "torch"} & set(sys.modules)
from shoal.report.plots import scatter
assert scatter.plot([scatter.Point("a", 1.0, 1.0, "trivial")], "score", "s", "desc")
assert "matplotlib" in sys.modules
assert not {"matplotlib.pyplot", "torch"} & set(sys.modules)
"""
        subprocess.run([sys.executable, "-c", code], check=True)

    @pytest.mark.parametrize(
        ("values", "labels"),
        [
            ([0.0086, 0.046], ["0.01", "0.02", "0.05"]),
            ([0.001, 0.9], ["0.001", "0.01", "0.1", "1"]),
            ([3.0], ["1", "2", "5"]),
            ([1.3e-5, 6e-5], ["2×10⁻⁵", "5×10⁻⁵"]),
        ],
    )
    def test_logarithms_are_marked_at_round_numbers(self, values: list[float], labels: list[str]) -> None:
        assert scaled(values, logarithmic=True)[0] == labels

    def test_equal_ratios_are_equally_far_apart(self) -> None:
        _, places = scaled([1e-4, 1e-2, 1.0])
        assert places[0] - places[1] == pytest.approx(places[1] - places[2])

    def test_zero_and_what_is_too_small_has_a_place_below_the_logarithmic_part(self) -> None:
        labels, places = scaled([0.0, 1e-30, 1e-3, 0.5, 1.0])
        assert labels[0] == "0"
        assert places == sorted(places, reverse=True)
        assert places[0] <= 180

    @pytest.mark.parametrize("values", [[0.9, 0.99], [-1.0, 5.0, 900.0], [0.0, 0.0], [3.0], [], [math.nan]])
    def test_other_values_are_linear(self, values: list[float]) -> None:
        labels, places = scaled(values)
        assert labels
        assert not any("⁻" in label for label in labels)
        assert all(20 <= place <= 180 for place in places if math.isfinite(place))

    @pytest.mark.parametrize("logarithmic", [None, True])
    @pytest.mark.parametrize("values", [[1e300], [5e-324], [5e-324, 1.0], [-1.0], [1e-300, 1e300], [0.0]])
    def test_values_of_any_size_have_a_place_without_a_warning(
        self, values: list[float], logarithmic: bool | None
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _, places = scaled(values, logarithmic=logarithmic)
        assert all(20 <= place <= 180 for place in places)

    def test_ticks_are_round(self) -> None:
        assert linear_ticks(0.0, 0.04, 4) == [0.0, 0.01, 0.02, 0.03, 0.04]
        assert linear_ticks(-1.3, 1.2, 4) == [-1.0, 0.0, 1.0]
        assert linear_ticks(0, 3, 9, integers=True) == [0, 1, 2, 3]
        assert linear_ticks(1e-14, 3e-14, 4) == [1e-14, 1.5e-14, 2e-14, 2.5e-14, 3e-14]


def front_of(record: Record, size: str = "wide", **options: bool) -> Drawing:
    return Drawing(front.plot(plans_of(record), record.planning, size, **options))


def with_front(changes: list[dict[str, float]], **more: object) -> Record:
    point = make_point(make_blocks(), 8, 24)
    return planned_record(front=[FrontPoint.model_validate({**point.model_dump(), **one}) for one in changes], **more)


def stops(drawing: Drawing) -> list[str]:
    """What the keyboard stops at."""
    return [link.get("href") for link in drawing.root.iter("a") if link.get("tabindex") is None]


CLOSE = [{"latency_ms": 50.0 + 0.01 * i, "damage": 1 - 0.001 * i} for i in range(80)]


class TestFront:
    @pytest.mark.parametrize("size", SIZES)
    def test_every_plan_is_a_point_that_links_to_its_chain(self, size: str) -> None:
        drawing = front_of(planned_record(), size)
        assert stops(drawing) == [f"#plan-{n}" for n in range(1, 25)]
        assert sum(title.startswith("Plan 7\n") for title in drawing.titles()) == 1
        assert drawing.root.get("role") == "group"
        places = drawing.markers("dot")
        assert len(places) == 24
        assert all(0 < x < drawing.width and 0 < y < drawing.height for x, y in places)
        assert places == drawing.markers("reach")

    def test_less_latency_is_further_left_and_more_damage_further_up(self) -> None:
        places = front_of(planned_record()).markers("dot")
        assert places == sorted(places)
        assert [y for _, y in places] == sorted(y for _, y in places)

    def test_damages_over_decades_are_logarithmic_and_zero_has_its_place(self) -> None:
        damages = [1.0, 0.1, 0.01, 0.001, 0.0]
        drawing = front_of(
            with_front([{"latency_ms": 50.0 + i, "damage": d} for i, d in enumerate(damages)], rounds=[])
        )
        rows = [y for _, y in drawing.markers("dot")]
        gaps = [below - above for above, below in pairwise(rows[:4])]
        assert gaps == pytest.approx([gaps[0]] * 3, abs=0.1)
        assert rows[4] > rows[3]
        assert {"1", "0.1", "0.01", "0"} <= set(drawing.texts("tick"))

    def test_the_axis_says_shares_and_milliseconds(self) -> None:
        assert {"50 %", "53.1 ms"} <= set(front_of(planned_record()).texts("tick"))

    def test_built_plans_stand_where_they_were_measured(self) -> None:
        record = planned_record()
        built = record.planning.rounds[1]
        place = {"latency_ms": built.latency_measured_ms, "damage": built.damage_measured}
        drawing = front_of(record.model_copy(update={"planning": with_front([place]).planning}))
        # the chosen plan, and the centre of the ring that marks the final network
        assert drawing.markers("built chosen")[0] == pytest.approx(drawing.markers("dot")[0], abs=0.02)
        assert len(drawing.markers("built chosen")) == len(drawing.markers("built")) == 2

    def test_the_chosen_plan_links_to_its_chain_and_is_connected_to_the_final_network(self) -> None:
        drawing = front_of(planned_record())
        shortcuts = [link.get("href") for link in drawing.root.iter("a") if link.get("tabindex") == "-1"]
        assert shortcuts == ["#plan-8", "#plan-8"]
        assert len(drawing.lines("connector predicted")) == 2
        ((start, end),) = drawing.lines("connector refitted")
        assert (start, end) == (drawing.markers("built chosen")[0], drawing.markers("built chosen")[1])

    def test_without_a_chosen_plan_there_is_no_final_network(self) -> None:
        drawing = front_of(planned_record(rounds=make_planning(make_blocks()).rounds[:1]))
        assert len(list(drawing.root.iter("a"))) == 24
        assert drawing.lines("connector refitted") == []

    @pytest.mark.parametrize("size", SIZES)
    def test_numbers_of_points_do_not_overlap_and_that_of_the_chosen_plan_is_there(self, size: str) -> None:
        drawing = front_of(with_front(CLOSE, rounds=[], picked=2), size)
        shown = [text for style in ("tick halo", "tick halo strong") for g in drawing.marks(style) for text in g]
        assert 5 < len(shown) < 80
        places = [(float(text.get("x")), float(text.get("y"))) for text in shown]
        assert all(abs(a - c) >= 7 or abs(b - d) >= 12 for i, (a, b) in enumerate(places) for c, d in places[:i])
        assert drawing.texts("tick halo strong") == ["2"]

    def test_what_has_no_place_is_left_out(self) -> None:
        drawing = front_of(with_front([{"damage": math.nan}, {"damage": 0.5}], damage_final=math.nan))
        assert stops(drawing) == ["#plan-2"]
        assert drawing.lines("connector refitted") == []
        for record in (with_front([{"damage": math.nan}]), planned_record(original_ms=0.0)):
            assert front.plot(plans_of(record), record.planning, "wide") == ""

    def test_the_final_network_is_before_recovery_where_there_was_one(self) -> None:
        assert any(title.startswith("The final network\n") for title in front_of(planned_record()).titles())
        recovered = front_of(planned_record(), recovered=True).titles()
        assert any(title.startswith("The final network, before recovery\n") for title in recovered)
        assert not front.legend()[-1][1].endswith("before recovery")
        assert front.legend(recovered=True)[-1][1].endswith("before recovery")


class TestRemoval:
    def test_every_step_has_a_mark_with_its_interval_and_an_undone_one_is_hollow(self) -> None:
        steps = make_steps(["a", "b"], taken_back="c")
        drawing = Drawing(curves.removal_plot(curves.divergences(steps, ["a", "b"]), "KL", KL, "wide"))
        assert (len(drawing.markers("dot")), len(drawing.markers("dot back"))) == (2, 1)
        assert len(drawing.lines("whisker")) == 3
        assert drawing.titles()[-1].startswith("3. c, undone\n")
        assert drawing.root.find("desc").text.startswith("From 0.000400 nats after 1 removed to ")

    @pytest.mark.parametrize("size", SIZES)
    def test_the_limit_and_all_intervals_lie_inside(self, size: str) -> None:
        points = curves.drops(make_steps(["a", "b", "c"]), ["a", "b", "c"])
        drawing = Drawing(
            curves.removal_plot(points, "Drop", Damage("points lost", "points lost", "points lost"), size, limit=5.0)
        )
        lines = [line for style in ("whisker", "limit", "curve", "zero") for line in drawing.lines(style)]
        assert all(0 <= x <= drawing.width and 0 <= y <= drawing.height for line in lines for x, y in line)
        assert len(drawing.lines("limit")) == 1
        assert "points lost; dashed: limit 5" in drawing.texts()

    def test_drops_are_in_points_and_steps_without_one_are_left_out(self) -> None:
        steps = make_steps(["a", "b"])
        steps[0] = steps[0].model_copy(update={"validation": None})
        (point,) = curves.drops(steps, ["a", "b"])
        assert (point.x, point.name) == (2, "b")
        assert point.value == pytest.approx(-0.29)

    def test_no_points_no_plot_and_no_divergence_at_all_can_be_drawn(self) -> None:
        assert curves.removal_plot([], "KL", KL, "wide") == ""
        flat = make_steps(["a"])[0].model_copy(update={"kl": 0.0, "kl_interval": (0.0, 0.0)})
        assert "<svg" in curves.removal_plot(curves.divergences([flat], ["a"]), "KL", KL, "wide")


def recovery_drawing(size: str = "wide", **changes: object) -> Drawing:
    return Drawing(curves.recovery_plot(make_recovery(**changes), size))


class TestRecovery:
    def test_the_curve_begins_at_the_cut_and_rises_before_it_falls(self) -> None:
        drawing = recovery_drawing()
        divergence, loss = drawing.lines("curve")
        assert (len(divergence), len(loss)) == (4, 3)
        rows = [y for _, y in divergence]
        assert rows[0] == drawing.lines("limit")[0][0][1]
        assert rows[1] < rows[0] < rows[2] < rows[3]
        assert [x for x, _ in loss] == [x for x, _ in divergence[1:]]

    def test_the_axis_is_logarithmic(self) -> None:
        equal = [{**one, "divergence": value} for one, value in zip(CURVE, (0.4, 0.2, 0.1, 0.05), strict=True)]
        rows = [y for _, y in recovery_drawing(curve=equal).lines("curve")[0]]
        gaps = [b - a for a, b in pairwise(rows)]
        assert gaps == pytest.approx([gaps[0]] * 3, abs=0.2)

    def test_the_weights_that_were_kept_are_marked(self) -> None:
        drawing = recovery_drawing(kept_step=100, divergence_after=0.012)
        assert drawing.markers("built") == [drawing.lines("curve")[0][2]]
        unchanged = recovery_drawing(kept_step=0, divergence_after=0.02)
        assert unchanged.markers("built") == [unchanged.lines("limit")[0][0]]

    def test_evaluations_without_numbers_are_left_out(self) -> None:
        nothing = [
            {**CURVE[2], "divergence": None, "loss": None},
            {**CURVE[3], "divergence": math.nan, "loss": math.inf},
        ]
        text = curves.recovery_plot(make_recovery(curve=[*CURVE[:2], *nothing]), "wide")
        assert len(Drawing(text).lines("curve")[0]) == 2
        assert not re.search(r"\b(nan|inf|None)\b", text)

    def test_without_losses_there_is_one_set_of_axes(self) -> None:
        drawing = recovery_drawing(curve=[{**one, "loss": None} for one in CURVE])
        assert len(drawing.lines("curve")) == 1
        assert not any("loss" in text for text in drawing.texts())

    @pytest.mark.parametrize(
        "changes",
        [{"curve": []}, {"curve": CURVE[:1]}, {"divergence_before": math.nan}, {"divergence_after": math.nan}],
    )
    def test_without_a_curve_there_is_no_picture(self, changes: dict[str, object]) -> None:
        assert curves.recovery_plot(make_recovery(**changes), "wide") == ""

    @pytest.mark.parametrize("size", SIZES)
    def test_all_of_it_lies_inside_a_divergence_of_zero_too(self, size: str) -> None:
        zero = {"curve": [*CURVE[:3], {**CURVE[3], "divergence": 0.0}], "divergence_after": 0.0}
        for drawing in (recovery_drawing(size), recovery_drawing(size, **zero)):
            lines = [*drawing.lines("curve"), *drawing.lines("limit"), drawing.markers("built")]
            assert all(0 <= x <= drawing.width and 0 <= y <= drawing.height for line in lines for x, y in line)

    def test_the_description_tells_the_whole_course(self) -> None:
        text = curves.describe_recovery(make_recovery())
        for expected in ("0.0200 nats before", "at most 0.0500 at step 50", "0.00800 nats", "from 0.100 to 0.0400"):
            assert expected in text


class TestTraining:
    def test_errors_blocks_and_rate_are_drawn_over_all_epochs(self) -> None:
        error, blocks, rate = Drawing(curves.training_plot(make_rows(), "wide")).lines("curve")
        assert len(error) == len(blocks) == len(rate) == 4
        assert [y for _, y in error] == sorted(y for _, y in error), "the error falls, so the line goes down the page"
        assert [y for _, y in blocks] == sorted(y for _, y in blocks)
        assert error[0][0] == rate[0][0]

    def test_every_epoch_that_closed_gates_is_marked_in_every_panel(self) -> None:
        assert len(Drawing(curves.training_plot(make_rows(), "wide")).lines("limit")) == 2 * 3

    def test_test_errors_are_dots_with_their_numbers(self) -> None:
        drawing = Drawing(curves.training_plot(make_rows(), "wide"))
        assert len(drawing.markers("dot back")) == 2
        assert any(title.startswith("epoch 4: test error 10.0 %") for title in drawing.titles())

    def test_the_description_names_the_ends_and_the_pruned_blocks(self) -> None:
        text = curves.describe_training(make_rows())
        assert "from 50.0 % in epoch 1 to 12.5 % in epoch 4, on test 10.0 %" in text
        assert "1 after epoch 2, 1 after epoch 3" in text

    def test_one_epoch_none_and_values_of_zero_or_no_number(self) -> None:
        assert curves.training_plot([], "wide") == ""
        assert "<svg" in curves.training_plot(make_rows(1), "narrow")
        for value in (0.0, math.nan):
            changes = {"train_error": value, "test_error": value, "rate": value}
            text = curves.training_plot([row.model_copy(update=changes) for row in make_rows()], "narrow")
            assert not re.search(r'"[^"]*\bnan\b', text)


def scattered(points: list[Point]) -> Drawing:
    return Drawing(scatter.plot(points, "a score", "s", "what it shows"))


class TestScatter:
    def test_a_mark_for_every_block_inside_the_picture(self) -> None:
        drawing = scattered([Point(f"b{i}", 0.1 * i, 10.0 ** (i - 6), "non-trivial") for i in range(8)])
        places = drawing.markers("mark non-trivial")
        assert len(places) == 8
        assert all(0 < x < drawing.width and 0 < y < drawing.height for x, y in places)

    def test_blocks_in_one_place_are_counted(self) -> None:
        drawing = scattered(
            [*(Point(f"b{i}", 0.0, 0.0, "trivial") for i in range(15)), Point("c", 1, 2, "non-trivial")]
        )
        assert len(drawing.markers("mark trivial")) == len(drawing.markers("mark non-trivial")) == 1
        assert "15 ×" in drawing.texts()
        assert any("b0: trivial" in title and "and 3 more" in title for title in drawing.titles())

    def test_verdicts_in_one_place_do_not_hide_each_other(self) -> None:
        points = [Point("a", 1.0, 1.0, "trivial"), Point("b", 1.0, 1.0, "non-trivial"), Point("c", 2.0, 2.0, "trivial")]
        drawing = scattered(points)
        assert len({*drawing.markers("mark trivial"), *drawing.markers("mark non-trivial")}) == 3

    def test_what_is_not_a_number_is_left_out(self) -> None:
        broken = [Point("a", math.nan, 1.0, "trivial"), Point("b", 1.0, math.inf, "trivial")]
        assert scatter.plot(broken, "x", "s", "") == scatter.plot([], "x", "s", "") == ""

    def test_a_name_of_any_characters_is_text(self) -> None:
        text = scatter.plot([Point("<script>", 1.0, 1.0, "trivial")], "<script>\x1b$a$ 分", "s", "<script>")
        assert "<script" not in text
        assert "<script> $a$ 分" in Drawing(text).texts()
