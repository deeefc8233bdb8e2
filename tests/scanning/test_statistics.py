import pytest
import torch

from shoal.scanning.scores import SCORES, BlockStatistics


def test_half_precision_does_not_overflow():
    big = torch.full((2, 3, 4), 300.0, dtype=torch.float16)
    seen = BlockStatistics(product_count=2)
    seen.add_unit(big)
    seen.add_branch(big, big)
    seen.add_pair(big, big)
    seen.add_gradient(big, big)
    assert seen.ratio_sum == pytest.approx(2.0)
    assert seen.cosine_sum == pytest.approx(6.0)
    assert SCORES["taylor"].function(seen) == pytest.approx(-300 * 300 * 12)
    assert SCORES["mean_response"].function(seen) == pytest.approx(300.0)


def test_rows_go_to_their_halves():
    seen = BlockStatistics()
    x = torch.arange(6.0).reshape(6, 1).double()
    seen.add_rows(x, x, torch.tensor([False, True, False, True, True, False]))
    seen.add_rows(x[:1], x[:1], torch.tensor([True]))
    assert [half.n for half in seen.halves] == [3, 4]
    assert float(seen.halves[0].mean_x) == pytest.approx((0 + 2 + 5) / 3)


def test_every_score_says_where_it_is_from_and_is_undefined_without_data():
    sources = {name: score.function.__doc__.rpartition("Source: ")[2] for name, score in SCORES.items()}
    for name, score in SCORES.items():
        assert score.function.__name__ == name
        cited = sources["largest_response"] if sources[name].startswith("as `largest_response`") else sources[name]
        assert score.source.removeprefix("arXiv:") in cited
        assert score.high_means in ("keep", "remove")
        assert score.function(BlockStatistics()) is None
