import pytest

from shoal.errors import UsageError
from shoal.recover import DistillConfig


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
        DistillConfig(**wrong)


def test_settings_are_plain_data():
    assert DistillConfig(**DistillConfig(rate=0.1).to_dict()) == DistillConfig(rate=0.1)


def test_the_weight_of_the_features_follows_the_optimizer_unless_it_is_given():
    assert DistillConfig().weight_of_features("sgd") > DistillConfig().weight_of_features("adamw") > 0
    assert {DistillConfig(features=0.0).weight_of_features(kind) for kind in ("sgd", "adamw")} == {0.0}


def test_far_features_are_masked_where_they_diffuse_unless_it_is_given():
    assert DistillConfig().mask_of_features("denoising") == 2.0
    assert DistillConfig().mask_of_features("classification") == DistillConfig().mask_of_features(None) == 0.0
    assert DistillConfig(sigmas=3.0).mask_of_features(None) == 3.0
    assert DistillConfig(sigmas=0).mask_of_features("denoising") == 0.0
    assert "sigmas" not in DistillConfig().to_dict()
