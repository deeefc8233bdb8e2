from scanned import make_scan, one_sample, plain_chain, without_labels

from shoal.report.scan_figures import scan_figures


def test_four_figures_of_a_scan() -> None:
    assert [(one.name, one.value) for one in scan_figures(make_scan())] == [
        ("Trivial blocks", "9 of 27"),
        ("Non-trivial layers", "31 of 56"),
        ("Top-1, test", "98.0 %"),
        ("Best score", "0.97"),
    ]


def test_figures_that_were_not_measured_are_left_out() -> None:
    assert [one.name for one in scan_figures(plain_chain())] == ["Non-trivial layers", "Top-1, test"]
    assert "Loss, test" in [one.name for one in scan_figures(one_sample())]
    assert [one.name for one in scan_figures(without_labels())][-1] == "Best score"
    assert len(scan_figures(without_labels())) == 3
