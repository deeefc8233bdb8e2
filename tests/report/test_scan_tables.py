import pytest
from scanned import ODD, make_scan, plain_chain, unmeasured, with_second, without_labels

from shoal.report import scan_tables


@pytest.mark.parametrize("make", [make_scan, *ODD])
def test_every_row_has_a_cell_for_every_column(make) -> None:
    record = make()
    for table in (getattr(scan_tables, name)(record) for name in ("blocks", "ablations", "layers", "scores", "second")):
        if table is not None:
            assert table.rows
            assert all(len(line.entries) == len(table.columns) - 1 for line in table.rows)


def row(record, path: str, table: str = "blocks") -> dict:
    found = getattr(scan_tables, table)(record)
    line = next(line for line in found.rows if line.head == path)
    return {column.name: entry for column, entry in zip(found.columns[1:], line.entries, strict=True)}


def test_a_block_has_its_figures() -> None:
    found = row(make_scan(), "stages.1.0")
    assert (found["Verdict"].text, found["Family-wise"].text) == ("non-trivial", "non-trivial")
    assert (found["Top-1 lost, points"].text, found["Top-1 lost, points"].detail) == ("42.00", "36.90 to 47.10")
    assert (found["KL, nats"].text, found["KL, nats"].sort) == ("1.80", 1.8)
    assert found["Shape out"].text == "16 × 32 × 32 → 32 × 16 × 16"


def test_without_labels_the_divergence_stands_there_once() -> None:
    found = row(without_labels(), "stages.1.0")
    assert found["Divergence, nats"].detail == "1.3 – 2.5"
    assert not {"KL, nats", "Top-1 lost, points"} & set(found)


def test_what_was_not_measured_sorts_to_the_end_and_says_why() -> None:
    found = row(unmeasured(), "stages.0.0")
    assert (found["Verdict"].text, found["Verdict"].detail) == ("not measured", "not removable: shared")
    assert found["KL, nats"].sort is None
    assert row(unmeasured(), "stages.0.1")["KL, nats"].sort is None


def test_scores_stand_beside_the_damage_in_the_order_of_the_record() -> None:
    found = row(make_scan(), "stages.0.0", "scores")
    assert list(found) == ["Verdict", "Damage, nats", "taylor", "mean response", "linear cka"]
    assert found["mean response"].sort == 0.901


def test_a_layer_says_whether_it_changes_the_number_of_channels() -> None:
    assert row(make_scan(), "stem", "layers")["Changes channels"].text == "changes"
    assert row(make_scan(), "stages.0.0.conv1", "layers")["Block"].text == "stages.0.0"


def test_tables_without_rows_are_left_out() -> None:
    assert scan_tables.blocks(plain_chain()) is None
    assert scan_tables.ablations(plain_chain()) is None
    assert scan_tables.scores(plain_chain()) is None
    assert scan_tables.second(make_scan()) is None
    assert scan_tables.layers(make_scan(layers=[])) is None


def test_verdicts_that_differ_stand_side_by_side() -> None:
    parted = scan_tables.differing(with_second())
    assert parted
    assert all(here.verdict != there.verdict for _, _, here, there in parted)
    # the same verdict on its own, another one among all comparisons: that is no difference
    here = make_scan().blocks[0]
    strict = {name: one.model_copy(update={"familywise": "undecided"}) for name, one in here.ablations.items()}
    also = with_second().also.model_copy(update={"blocks": [here.model_copy(update={"ablations": strict})]})
    assert scan_tables.differing(make_scan(also=also)) == []
    found = row(with_second(), "stages.0.0", "second")
    assert (found["On digits"].text, found["On digits as JPEG"].text) == ("non-trivial", "undecided")


def test_two_data_sets_of_one_name_are_told_apart() -> None:
    also = with_second().also.model_copy(update={"data": "digits"})
    assert scan_tables.data_names(make_scan(also=also)) == ["the first data", "the second data"]
