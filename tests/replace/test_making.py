import copy

import pytest
import torch
from given import dissected, randn

import networks
from shoal.errors import SurgeryError, UsageError
from shoal.plan import Inner, Replacement
from shoal.replace import build_replacement, build_segments, find_spans, students_of
from shoal.replace.students import Student, student_of

IMAGES = {"layout": "channels_first", "in_channels": 4, "out_channels": 4}


def anatomy():
    return dissected(lambda: networks.CifarResNet(2, widths=(4, 8, 16)), 3, 8, 8)


def narrow(width=2, path="layer1.0"):
    inner = Inner(writers=(f"{path}.conv1",), keepers=(f"{path}.bn1",), readers=(f"{path}.conv2",), width=width)
    return Replacement(kind="narrow", copies=(path,), inner=(inner,), **IMAGES)


def test_a_block_is_an_independent_copy_of_the_original():
    model = anatomy().model
    made = student_of(Replacement(kind="block", copies=("layer1.1",), **IMAGES), model)
    x = randn(2, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(made(x.clone()), model.layer1[1](x.clone()))
        before = copy.deepcopy(model.state_dict())
        for one in made.parameters():
            one.zero_()
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert not made.training


def test_several_blocks_run_in_a_row():
    model = anatomy().model
    stand_in = Replacement(kind="block", copies=("layer1.0", "layer2.0"), layout="channels_first", in_channels=4,
                       out_channels=8, stride=2)  # fmt: skip
    x = randn(2, 4, 8, 8)
    with torch.no_grad():
        expected = model.layer2[0](model.layer1[0](x.clone()))
        assert torch.equal(student_of(stand_in, model)(x.clone()), expected)


def test_a_narrow_block_without_features_that_say_nothing_is_the_same_function():
    model = anatomy().model
    block = model.layer1[0]
    with torch.no_grad():
        block.conv2.weight[:, 1] = 0.0
        block.conv2.weight[:, 3] = 0.0
        made = student_of(narrow(), model)
        x = randn(2, 4, 8, 8)
        torch.testing.assert_close(made(x.clone()), block(x.clone()))
    assert made[0].conv1.weight.shape == (2, 4, 3, 3)
    assert made[0].conv2.weight.shape == (4, 2, 3, 3)
    assert (made[0].conv1.out_channels, made[0].bn1.num_features, made[0].conv2.in_channels) == (2, 2, 2)
    assert "bn1.running_mean" in made[0].state_dict()
    assert torch.equal(made[0].bn1.running_var, block.bn1.running_var[[0, 2]])


def test_depthwise_convolutions_and_gates_follow():
    torchvision = pytest.importorskip("torchvision")
    found = dissected(lambda: torchvision.models.mobilenet_v2(weights=None), 3, 32, 32)
    line = build_segments(found)
    one = next(
        one
        for one in students_of(found, line, find_spans(found, line, 1), ["narrow"])
        if one.span.paths == ("features.3",)
    )
    made = student_of(one.stand_in, found.model)
    depthwise = made[0].conv[1][0]
    assert (depthwise.groups, depthwise.in_channels, tuple(depthwise.weight.shape)) == (72, 72, (72, 1, 3, 3))
    with torch.no_grad():
        assert made(randn(2, 24, 8, 8)).shape == (2, 24, 8, 8)


def test_what_else_a_block_is_given_goes_to_each():
    class Block(torch.nn.Module):
        def forward(self, x, mask, *, scale):
            return x * mask + scale

    student = Student(Block(), Block())
    assert student(torch.tensor(2.0), torch.tensor(3.0), scale=1.0) == 22.0  # (2 * 3 + 1) * 3 + 1


def test_build_makes_students_of_the_original_in_its_precision():
    model = anatomy().model
    made = build_replacement(narrow(), torch.zeros(1, dtype=torch.bfloat16), model)
    assert {one.dtype for one in made.parameters()} == {torch.bfloat16}
    with pytest.raises(UsageError, match="a student is made of blocks of the original"):
        build_replacement(narrow(), torch.zeros(1))


def test_an_original_without_these_blocks_is_refused():
    for wrong in (narrow(path="layer9.0"), narrow(width=40)):
        with pytest.raises(SurgeryError, match="cannot be made of this network"):
            student_of(wrong, anatomy().model)
    beside = Inner(writers=("layer2.0.conv1",), readers=("layer1.0.conv2",), width=2)
    with pytest.raises(SurgeryError, match=r"'layer2\.0\.conv1' is in none of the blocks"):
        student_of(Replacement(kind="narrow", copies=("layer1.0",), inner=(beside,), **IMAGES), anatomy().model)
