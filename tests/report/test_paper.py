"""The paper's three pictures beside those of a run."""

import pytest
from drawing import Drawing
from trained import make_beside, make_training

from shoal.report import render_training
from shoal.report.plots import paper
from shoal.report.plots.figure import WIDTHS


def test_what_the_run_shows_is_counted_from_its_record():
    record = make_training(beside=[make_beside("plain-side", 0.0, 0)])
    timing, stages, cost = paper.pictures(record)
    assert timing.measured[0] == (0, 0)
    assert timing.measured[-1] == (100, pytest.approx(100 * 2 / 6))
    assert (50, pytest.approx(100 / 6)) in timing.measured, "the first block goes after epoch 2 of 4"
    assert stages.measured == [(1, pytest.approx(200 / 3)), (2, pytest.approx(200 / 3))]
    assert cost.measured == [(pytest.approx(100 / 3), 1.0)]
    assert cost.interval == (-1.0, 3.0)


def test_what_was_published_is_as_the_figures_have_it():
    _, stages, cost = paper.pictures(make_training())
    assert cost.published[0][0] == (22.2, pytest.approx(-0.6))
    assert cost.published[0][-1] == (82.9, pytest.approx(0.04))
    assert stages.published[0] == [(1, 100), (2, pytest.approx(1600 / 18)), (3, pytest.approx(800 / 18))]
    assert max(share for _, share in paper.PUBLISHED_TIMING) == 82.9
    for run in paper.PUBLISHED:
        assert (run.depth - 2) // 6 == run.group
        if run.depth != 200:  # where two figures of the paper disagree
            assert 100 - 100 * sum(run.kept) / (3 * run.group) == pytest.approx(run.lost, abs=0.7)


@pytest.mark.parametrize("size", WIDTHS)
def test_both_sides_are_drawn_on_one_scale_inside_the_picture(size):
    drawing = Drawing(paper.paper_plot(make_training(beside=[make_beside("plain", 0.0, 0)]), size))
    assert drawing.texts("strong") == ["Paper, CIFAR-10", "This run"]
    assert len(drawing.lines("whisker")) == 1
    assert len(drawing.markers("dot")) == 5 + 4 * 3 + 4 + 9 + 2 + 1
    for x, y in [*drawing.markers("dot"), *(point for line in drawing.lines("curve") for point in line)]:
        assert 0 < x < drawing.width
        assert 0 < y < drawing.height
    ends = [max(x for x, _ in line) for line in drawing.lines("curve")]
    assert max(ends) > drawing.width / 2


def test_without_a_plain_run_it_says_how_to_get_one_and_without_gates_there_is_nothing():
    assert "not compared" in Drawing(paper.paper_plot(make_training(), "wide")).texts()
    assert paper.paper_plot(make_training(gated=0), "wide") == ""
    assert 'id="paper"' in render_training(make_training())
    assert 'id="paper"' not in render_training(make_training(gated=0))


def test_the_description_says_it_in_words():
    text = paper.describe(make_training(beside=[make_beside("plain-side", 0.0, 0)]))
    assert "2 of 6 blocks lost between epochs 2 and 3 of 4; kept 67 % of stage 1, 67 % of stage 2" in text
    assert "against plain-side" in text
    assert "not compared" in paper.describe(make_training())
