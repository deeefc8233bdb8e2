import pytest

from shoal.recover.cosine import cosine_lr


def test_up_in_a_line_and_down_along_a_cosine():
    assert cosine_lr(0.0, 2.0, 0.1) == 0
    assert cosine_lr(0.05, 2.0, 0.1) == pytest.approx(1.0)
    assert cosine_lr(0.1, 2.0, 0.1) == pytest.approx(2.0)
    assert cosine_lr(0.55, 2.0, 0.1) == pytest.approx(1.0)
    assert cosine_lr(1.0, 2.0, 0.1) == pytest.approx(0.0)
    assert cosine_lr(7.0, 2.0, 0.1) == pytest.approx(0.0)


def test_without_a_warm_up_it_begins_at_the_top():
    assert cosine_lr(0.0, 2.0, 0.0) == 2.0
