import json
import re

from trained import GONE, PATHS, make_beside, make_rows, make_training

from shoal.report import render_training, train


def test_the_page_needs_nothing_from_outside():
    page = render_training(make_training())
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    assert not re.findall(r"url\(", page)


def test_the_page_holds_the_figures_the_table_and_the_proof():
    page = render_training(make_training())
    assert page.count("<svg") == 4
    for said in ("2 of 6 blocks pruned in training", "Identical by construction", "stages.1.2", "33.3\u00a0% less"):
        assert said in page.replace("33.3 % less", "33.3\u00a0% less"), said
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for link in re.findall(r'href="#([^"]+)"', page):
        assert link in ids


def test_what_comes_from_outside_is_escaped():
    page = render_training(make_training(model="<script>alert(1)</script>"))
    assert "<script>alert" not in page
    assert "&lt;their&gt; weights" in page


def test_the_whole_record_is_inside():
    record = make_training()
    inside = re.search(r'id="record">(.*?)</script>', render_training(record), re.S).group(1)
    assert json.loads(inside) == json.loads(record.model_dump_json())


def test_a_plain_run_has_no_gates_to_show():
    bare = [row.model_copy(update={"largest": {}, "lost": False, "taken_out": []}) for row in make_rows()]
    page = render_training(make_training(gated=0, lost=[], rows=bare, warnings=[]))
    assert "Responses against epsilon" not in page
    assert "trained without gates" in page


def test_runs_beside_it_have_a_table():
    page = render_training(make_training(beside=[make_beside("large-epsilon", 20.0, 6)]))
    assert 'id="baseline-table"' in page
    assert "large-epsilon" in page
    assert "Compared with other runs" not in render_training(make_training())


def test_the_headline_says_what_was_lost_and_what_is_left():
    said = train.headline(make_training())
    assert said == (
        "2 of 6 blocks pruned in training; top-1 97.5 % on 400 test samples; parameters 33.3 % less, MACs 30.0 % less"
    )


def test_without_gates_nothing_is_said_to_be_lost():
    said = train.headline(make_training(gated=0, lost=[]))
    assert said == "6 blocks trained without gates; top-1 97.5 % on 400 test samples"


def test_the_lead_says_the_proof_and_what_live_gates_would_do():
    first, second = train.lead(make_training())
    assert first == "The pruned network is identical by construction to the full network with frozen gates."
    assert "reopen on 3 of 4 test mini-batches of 128: top-1 97.5 %" in second


def test_live_gates_that_stay_closed():
    record = make_training()
    quiet = record.settled.live.model_copy(update={"batches_with_an_opening": 0})
    settled = record.settled.model_copy(update={"live": quiet})
    assert "no pruned block would reopen on 4 test mini-batches" in train.live_gates(make_training(settled=settled))
    assert train.live_gates(make_training(settled=record.settled.model_copy(update={"live": None}))) == ""


def test_rows_and_figures_hold_the_true_costs():
    rows = {row.label: row for row in train.comparison_rows(make_training())}
    assert (rows["Parameters"].original.value, rows["Parameters"].compressed.value) == ("90.0 k", "60.0 k")
    assert rows["MACs"].change == "30.0 % less"
    assert any(label.startswith("Latency, batch") for label in rows)
    figures = {one.name: one for one in train.key_figures(make_training())}
    assert (figures["Blocks pruned"].value, figures["MACs"].detail) == ("2 of 6", "30.0 % less")
    assert "the first took 2.00 s" in figures["An epoch"].detail


def test_other_runs_are_said_with_the_paired_interval():
    (said,) = train.baselines(make_training(beside=[make_beside("plain", 0.0, 0)]))
    assert said.startswith("compared with plain (epsilon 0, 0 blocks pruned, top-1 98.5 %): lost 1.00 points (")


def test_every_lost_block_has_its_numbers():
    table = train.pruned_table(make_training())
    assert [line.head for line in table.rows] == ["stages.1.2", "stages.0.1"]
    stage, epoch, largest, weight, opens = table.rows[0].entries
    assert (stage.sort, epoch.sort, largest.detail) == (2, 2, "2.50 on test")
    assert (weight.sort, weight.detail) == (0.25, "25.0 % of the initial weight")
    assert opens.text == "25.0 %"
    assert all(len(line.entries) == len(table.columns) - 1 for line in table.rows)


def test_without_losses_there_is_no_table():
    assert train.pruned_table(make_training(lost=[])) is None


def test_other_runs_stand_beside_this_one_by_epsilon():
    table = train.baseline_table(
        make_training(beside=[make_beside("large-epsilon", 20.0, 6), make_beside("plain", 0.0, 0)])
    )
    assert [line.head for line in table.rows] == ["this run", "plain", "large-epsilon"]
    assert [line.entries[2].text for line in table.rows] == ["2 of 6", "0 of 6", "6 of 6"]
    assert table.rows[1].entries[4].sort == 0.01
    assert train.baseline_table(make_training()) is None


def lanes(**changes):
    """The shades of each block, a letter for a column of epochs."""
    drawn = train.gate_map(make_training(**changes))
    return {lane.path: "".join(shade[-1] * columns for shade, columns in lane.shades) for lane in drawn.lanes}


def test_a_lane_ends_where_the_block_was_pruned():
    found = lanes()
    assert {path: len(shades.replace("e", "")) for path, shades in found.items()} == {
        path: GONE.get(path, 4) for path in PATHS
    }
    assert {len(shades) for shades in found.values()} == {4}


def test_the_shade_tells_how_far_a_response_exceeds_epsilon():
    found = lanes()
    assert found["stages.0.1"] == "000e"
    assert found["stages.0.0"] == "1111"
    assert found["stages.1.1"][0] == "3"
    assert [style for style, _ in train.gate_map(make_training()).legend] == [f"shade s{n}" for n in (3, 2, 1, 0)]


def test_many_epochs_share_columns():
    assert {len(shades) for shades in lanes(rows=make_rows(400)).values()} == {80}


def test_the_gates_are_described_and_left_out_where_there_are_none():
    assert train.describe_gates(make_training()) == "Pruned: stages.1.2 in epoch 2, stages.0.1 in epoch 3."
    assert "no block was pruned" in train.describe_gates(make_training(lost=[]))
    bare = [row.model_copy(update={"largest": {}}) for row in make_rows()]
    assert train.gate_map(make_training(rows=bare, lost=[])) is None
