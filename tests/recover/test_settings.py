import pytest

from shoal.errors import UsageError
from shoal.recover import DistilSettings


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"precision": "fp8"}, "expected fp32 or bf16"),
        ({"optimizer": "lbfgs"}, "expected auto, sgd or adamw"),
        ({"blends": 1.5}, "blends is 1.5, expected a number from 0 to 1"),
        ({"rate": 0.0}, "above 0"),
        ({"labels": float("nan")}, "labels is nan"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, said):
    with pytest.raises(UsageError, match=said):
        DistilSettings(**wrong)


def test_settings_are_plain_data():
    assert DistilSettings(**DistilSettings(rate=0.1).to_dict()) == DistilSettings(rate=0.1)
