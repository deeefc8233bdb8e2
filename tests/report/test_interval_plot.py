import math

import pytest
from reading import Page
from scanned import (
    ablation,
    evil_scan,
    layer,
    long_scan,
    make_scan,
    one_sample,
    plain_chain,
    scanned_blocks,
    unmeasured,
    without_labels,
)

from shoal.report import render_scan
from shoal.report.plots.intervals import axis_for, block_plot, layer_plot


def test_blocks_are_grouped_by_stage_with_a_lane_for_every_ablation() -> None:
    plot = block_plot(make_scan())
    assert [group.title for group in plot.groups] == ["Stage 1", "Stage 2", "Stage 3"]
    assert [lane.name for lane in plot.groups[0].rows[0].lanes] == ["block", "mean"]
    assert plot.groups[0].rows[0].lanes[0].centre == plot.axis.at(36.0)
    assert plot.named_lanes


def test_layers_go_in_the_order_of_the_forward_pass_and_those_that_change_channels_are_marked() -> None:
    plot = layer_plot(make_scan())
    assert [group.title for group in plot.groups] == [
        "Outside the blocks",
        "Stage 1",
        "Stage 2",
        "Stage 3",
        "Outside the blocks",
    ]
    marked = [row.name for group in plot.groups for row in group.rows if row.marked]
    assert marked == ["stem", "stages.1.0.conv1", "stages.2.0.conv1", "head"]
    assert not plot.named_lanes


def test_a_plain_network_has_layers_only() -> None:
    assert block_plot(plain_chain()) is None
    assert [group.title for group in layer_plot(plain_chain()).groups] == ["Layers"]


def test_a_long_stage_is_split_for_paper() -> None:
    assert [group.title for group in block_plot(long_scan()).groups][:2] == ["Stage 1, 1 to 40", "Stage 1, 41 to 67"]


def test_units_are_named_and_unmeasured_rows_are_empty() -> None:
    rows = block_plot(unmeasured()).groups[0].rows
    assert [len(row.lanes) for row in rows[:3]] == [0, 0, 1]
    assert [lane.name for lane in rows[3].lanes] == ["block", "unit 0", "unit 1"]
    assert "not measured" in Page(render_scan(unmeasured())).visible


def test_without_labels_the_loss_is_drawn() -> None:
    plot = block_plot(without_labels())
    assert (plot.unit, plot.axis.margin) == ("worse, nats", 0.01)
    assert plot.groups[0].rows[0].lanes[0].centre == plot.axis.at(0.9)


def test_the_band_is_as_wide_as_the_margin() -> None:
    block = scanned_blocks()[0].model_copy(
        update={"ablations": {"block": ablation(0.0, 0.0, top1_drop_interval=(-0.01, 0.01))}}
    )
    plot = block_plot(make_scan(blocks=[block]))
    (lane,) = plot.groups[0].rows[0].lanes
    assert plot.band == (lane.low, lane.high)


def test_an_interval_without_an_end_goes_to_the_edge_with_an_arrow_and_does_not_stretch_the_axis() -> None:
    plot = block_plot(one_sample())
    lanes = [lane for group in plot.groups for row in group.rows for lane in row.lanes]
    assert all((lane.low, lane.high, lane.open_low, lane.open_high) == (0.0, 100.0, True, True) for lane in lanes)
    assert plot.axis.high < 4.0
    assert "0.900 nats (unbounded interval), n = 1" in lanes[0].title
    assert "open-low open-high" in render_scan(one_sample())


def test_small_differences_are_on_a_linear_axis() -> None:
    small = [layer("a.2", None, 3, 3)]
    assert axis_for(small, make_scan()).linear
    assert not layer_plot(make_scan()).axis.linear


@pytest.mark.parametrize("drops", [(0.0, 0.0), (0.0, 0.3)])
def test_a_margin_of_zero_leaves_the_axis_linear(drops: tuple[float, float]) -> None:
    blocks = [
        block.model_copy(update={"ablations": {"block": ablation(drop, drop, top1_drop_interval=(drop, drop))}})
        for block, drop in zip(scanned_blocks(), drops, strict=False)
    ]
    plot = block_plot(make_scan(blocks=blocks, tolerance=0.0))
    assert plot.axis.linear
    assert plot.band[0] == plot.band[1]
    assert plot.groups[0].rows[0].lanes[0].centre == plot.axis.at(0.0)


def test_the_margin_stays_wide_next_to_a_large_difference() -> None:
    axis = layer_plot(make_scan()).axis
    assert axis.at(1.0) - axis.at(-1.0) > 20
    assert [text for _, text in axis.ticks] == ["−1", "0", "1", "3", "10", "30"]
    assert [axis.at(end) for end in (-math.inf, math.inf)] == [0.0, 100.0]


@pytest.mark.parametrize("make", [make_scan, one_sample, unmeasured, long_scan])
def test_all_is_drawn_inside(make) -> None:
    for plot in filter(None, (block_plot(make()), layer_plot(make()))):
        places = [place for place, _ in plot.axis.ticks]
        lanes = [lane for group in plot.groups for row in group.rows for lane in row.lanes]
        places += [end for lane in lanes for end in (lane.low, lane.centre, lane.high)]
        assert all(0 <= place <= 100 for place in places)
        assert all(lane.low <= lane.centre <= lane.high for lane in lanes)


def test_the_text_alternative_names_the_largest() -> None:
    text = block_plot(make_scan()).groups[2].desc
    assert text.startswith(
        "9 rows: 4 non-trivial, 2 undecided, 3 trivial. Top-1 lost: at most 48.0 points, at stages.2.0."
    )


def test_every_group_has_its_text_alternative_and_the_axis_is_hidden_from_those_who_listen() -> None:
    page = Page(render_scan(make_scan()))
    ids = {attributes.get("id") for _, attributes in page.tags}
    groups = [attributes for _, attributes in page.tags if attributes.get("class") == "group"]
    assert len(groups) == 3 + 5
    assert all(group["role"] == "img" and group["aria-describedby"] in ids for group in groups)
    heads = [attributes for _, attributes in page.tags if attributes.get("class") == "lane head"]
    assert [head["aria-hidden"] for head in heads] == ["true", "true"]


def test_a_name_cannot_become_markup() -> None:
    assert not Page(render_scan(evil_scan())).all("img")
