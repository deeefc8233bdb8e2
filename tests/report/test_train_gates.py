from trained import GONE, PATHS, make_rows, make_training

from shoal.report.train_gates import describe, gates, legend


def lanes(drawn):
    """The cells of each block."""
    return {path: part.count("<rect") for part in drawn.split("<g ")[1:] for path in PATHS if f">{path}<" in part}


def test_a_lane_ends_where_the_block_was_taken_out():
    found = lanes(gates(make_training(), 600, "g"))
    assert found == {path: GONE.get(path, 4) for path in PATHS}


def test_the_shade_tells_how_far_a_response_is_beyond_epsilon():
    drawn = gates(make_training(), 600, "g")
    part = next(part for part in drawn.split("<g ")[1:] if ">stages.0.1<" in part)
    assert 'fill-opacity="0.16"' in part
    assert 'fill-opacity="1"' in drawn
    assert len(legend()) == 4


def test_many_epochs_are_put_together():
    found = lanes(gates(make_training(rows=make_rows(400)), 600, "g"))
    assert max(found.values()) <= 80


def test_words_and_the_empty_case():
    assert describe(make_training()) == "Lost: stages.1.2 in epoch 2, stages.0.1 in epoch 3."
    bare = [row.model_copy(update={"largest": {}}) for row in make_rows()]
    assert gates(make_training(rows=bare, lost=[]), 600, "g") == ""
    assert "no block was lost" in describe(make_training(lost=[]))
