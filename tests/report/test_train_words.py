from trained import make_beside, make_training

from shoal.report import train_words


def test_the_headline_says_what_was_lost_and_what_is_left():
    said = train_words.headline(make_training())
    assert (
        said
        == "2 of 6 blocks lost in training; top-1 97.5 % on 400 test samples; parameters 33.3 % less, MACs 30.0 % less"
    )


def test_without_gates_nothing_is_said_to_be_lost():
    said = train_words.headline(make_training(gated=0, lost=[]))
    assert said == "6 blocks trained without gates; top-1 97.5 % on 400 test samples"


def test_the_lead_says_the_proof_and_what_live_gates_would_do():
    first, second = train_words.lead(make_training())
    assert first == "The plain network is identical by construction to the whole network with frozen gates."
    assert "come back on 3 of 4 test mini-batches of 128: top-1 97.5 %" in second


def test_live_gates_that_stay_closed():
    record = make_training()
    quiet = record.settled.live.model_copy(update={"batches_with_an_opening": 0})
    settled = record.settled.model_copy(update={"live": quiet})
    assert "none of the lost blocks would come back on 4" in train_words.live_gates(make_training(settled=settled))
    assert train_words.live_gates(make_training(settled=record.settled.model_copy(update={"live": None}))) == ""


def test_rows_and_figures_hold_the_true_costs():
    rows = {row.label: row for row in train_words.rows(make_training())}
    assert (rows["Parameters"].original.value, rows["Parameters"].compressed.value) == ("90.0 k", "60.0 k")
    assert rows["MACs"].change == "30.0 % less"
    assert any(label.startswith("Latency, batch") for label in rows)
    figures = {one.name: one for one in train_words.figures(make_training())}
    assert (figures["Blocks lost"].value, figures["MACs"].detail) == ("2 of 6", "30.0 % less")
    assert "the first took 2.00 s" in figures["An epoch"].detail


def test_other_runs_are_said_with_the_paired_interval():
    (said,) = train_words.beside(make_training(beside=[make_beside("plain", 0.0, 0)]))
    assert said.startswith("beside it, plain (epsilon 0): 0 blocks lost, top-1 98.5 %; this run against it: ")
    assert "1.0" in said.rpartition("against it: ")[2]
