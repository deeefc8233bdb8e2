from shoal.report import marks


def test_every_verdict_has_a_shape_of_its_own() -> None:
    full, diamond, hollow = (marks.mark(verdict, 5, 5) for verdict in ("non-trivial", "undecided", "trivial"))
    assert full.startswith("<circle")
    assert diamond.startswith("<path")
    assert hollow.startswith("<circle")
    assert 'class="mark trivial"' in hollow
    assert len(set(marks.LETTERS.values())) == 4


def test_the_legend_names_all_three() -> None:
    assert [meaning for _, meaning in marks.legend()] == ["non-trivial", "undecided", "trivial"]
