from trained import make_beside, make_training

from shoal.report.train_tables import beside, lost


def test_every_lost_block_has_its_numbers():
    table = lost(make_training())
    assert [line.head for line in table.lines] == ["stages.1.2", "stages.0.1"]
    stage, epoch, largest, weight, opens = table.lines[0].entries
    assert (stage.sort, epoch.sort, largest.detail) == (2, 2, "2.50 on test")
    assert (weight.sort, weight.detail) == (0.25, "25.0 % of what it began with")
    assert opens.text == "25.0 %"
    assert all(len(line.entries) == len(table.columns) - 1 for line in table.lines)


def test_without_losses_there_is_no_table():
    assert lost(make_training(lost=[])) is None


def test_other_runs_stand_beside_this_one_by_epsilon():
    table = beside(make_training(beside=[make_beside("large-epsilon", 20.0, 6), make_beside("plain", 0.0, 0)]))
    assert [line.head for line in table.lines] == ["this run", "plain", "large-epsilon"]
    assert [line.entries[2].text for line in table.lines] == ["2 of 6", "0 of 6", "6 of 6"]
    assert table.lines[1].entries[4].sort == 0.01
    assert beside(make_training()) is None
