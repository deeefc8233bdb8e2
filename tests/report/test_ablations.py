from scanned import layer, long_scan, make_scan, one_sample, plain_chain, unmeasured, without_labels

from shoal.report import ablations


def test_blocks_are_grouped_by_stage_with_a_lane_for_every_ablation() -> None:
    groups = ablations.blocks(make_scan())
    assert [group.title for group in groups] == ["Stage 1", "Stage 2", "Stage 3"]
    assert [lane.name for lane in groups[0].rows[0].lanes] == ["block", "mean"]
    assert groups[0].rows[0].lanes[0].change.value == 36.0


def test_layers_go_in_the_order_of_the_run_and_those_that_change_channels_are_marked() -> None:
    groups = ablations.layers(make_scan())
    assert [group.title for group in groups] == [
        "Outside the blocks",
        "Stage 1",
        "Stage 2",
        "Stage 3",
        "Outside the blocks",
    ]
    marked = [row.name for group in groups for row in group.rows if row.marked]
    assert marked == ["stem", "stages.1.0.conv1", "stages.2.0.conv1", "head"]


def test_a_plain_network_has_layers_only() -> None:
    assert ablations.blocks(plain_chain()) == []
    assert [group.title for group in ablations.layers(plain_chain())] == ["Layers"]


def test_a_long_stage_is_cut_for_paper() -> None:
    groups = ablations.blocks(long_scan())
    assert [group.title for group in groups][:2] == ["Stage 1, 1 to 40", "Stage 1, 41 to 67"]


def test_units_are_named_and_unmeasured_rows_are_empty() -> None:
    rows = ablations.blocks(unmeasured())[0].rows
    assert [len(row.lanes) for row in rows[:3]] == [0, 0, 1]
    assert [lane.name for lane in rows[3].lanes] == ["block", "unit 0", "unit 1"]


def test_without_labels_the_loss_is_drawn() -> None:
    groups = ablations.blocks(without_labels())
    assert groups[0].rows[0].lanes[0].change.value == 0.9
    canvas = ablations.canvas(groups, without_labels(), 970.0)
    assert (canvas.unit, canvas.tolerance) == ("worse, nats", 0.01)


def test_infinite_intervals_do_not_stretch_the_axis() -> None:
    groups = ablations.blocks(one_sample())
    assert ablations.canvas(groups, one_sample(), 970.0).scale.high < 4.0


def test_small_differences_need_no_squeezed_axis() -> None:
    record = make_scan(layers=[layer("a.2", None, 3, 3)])
    assert not ablations.squeezed(ablations.layers(record), record)
    assert ablations.squeezed(ablations.layers(make_scan()), make_scan())


def test_the_description_says_the_largest() -> None:
    text = ablations.blocks(make_scan())[2].desc
    assert text.startswith(
        "9 rows: 4 non-trivial, 2 undecided, 3 trivial. Top-1 lost: at most 48.0 points, at stages.2.0."
    )
