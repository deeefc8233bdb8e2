import pytest
import torch

from shoal.scanning.scores import SCORES, Statistics


def test_half_precision_does_not_overflow():
    big = torch.full((2, 3, 4), 300.0, dtype=torch.float16)
    seen = Statistics(product_count=2)
    seen.see_unit(big)
    seen.see_branch(big, big)
    seen.see_pair(big, big)
    seen.see_gradient(big, big)
    assert seen.ratio_sum == pytest.approx(2.0)
    assert seen.cosine_sum == pytest.approx(6.0)
    assert SCORES["taylor"].function(seen) == pytest.approx(-300 * 300 * 12)
    assert SCORES["mean_response"].function(seen) == pytest.approx(300.0)


def test_rows_go_to_their_halves():
    seen = Statistics()
    x = torch.arange(6.0).reshape(6, 1).double()
    seen.see_rows(x, x, torch.tensor([False, True, False, True, True, False]))
    seen.see_rows(x[:1], x[:1], torch.tensor([True]))
    assert [half.n for half in seen.halves] == [3, 4]
    assert float(seen.halves[0].mean_x) == pytest.approx((0 + 2 + 5) / 3)


def test_every_score_says_where_it_is_from_and_is_undefined_without_data():
    for name, score in SCORES.items():
        assert score.name == name == score.function.__name__
        assert score.function.__module__.rsplit(".", 1)[1] == name
        assert score.source.removeprefix("arXiv:") in __import__(score.function.__module__, fromlist="_").__doc__
        assert score.high_means in ("keep", "remove")
        assert score.function(Statistics()) is None
