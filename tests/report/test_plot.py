from xml.etree import ElementTree

import pytest
from handmade import make_steps

from shoal.report import plot


def test_a_step_taken_back_is_hollow() -> None:
    points = plot.divergences(make_steps(["a", "b"], taken_back="c"), ["a", "b"])
    assert [point.kept for point in points] == [True, True, False]
    root = ElementTree.fromstring(plot.plot(points, "KL", "nats", 340.0, "kl"))
    assert [dot.get("class") for dot in root.iter("circle")] == ["dot", "dot", "dot back"]


def test_marks_and_whiskers_lie_inside() -> None:
    points = plot.drops(make_steps(["a", "b", "c"]), ["a", "b", "c"])
    root = ElementTree.fromstring(plot.plot(points, "Drop", "points lost", 340.0, "drop", limit=5.0))
    for line in root.iter("line"):
        assert 0 <= float(line.get("y1")) <= float(root.get("height"))
        assert 0 <= float(line.get("y2")) <= float(root.get("height"))
    assert any(line.get("class") == "limit" for line in root.iter("line"))


def test_drops_are_in_points_and_steps_without_one_are_left_out() -> None:
    steps = make_steps(["a", "b"])
    steps[0] = steps[0].model_copy(update={"validation": None})
    (point,) = plot.drops(steps, ["a", "b"])
    assert (point.x, point.name) == (2, "b")
    assert point.value == pytest.approx(-0.29)


def test_no_points_no_plot() -> None:
    assert plot.plot([], "KL", "nats", 340.0, "kl") == ""


def test_steps_of_no_divergence_at_all_can_be_drawn() -> None:
    (step,) = make_steps(["a"])
    flat = step.model_copy(update={"kl": 0.0, "kl_interval": (0.0, 0.0)})
    assert "<svg" in plot.plot(plot.divergences([flat], ["a"]), "KL", "nats", 340.0, "kl")
