import pytest
import torch
from given import dissected, mlp
from torch import nn

import networks
from shoal.replace import build_segments, find_spans, students_of, two_blocks


@pytest.fixture(scope="module")
def resnet():
    return dissected(lambda: networks.CifarResNet(3, widths=(4, 8, 16)), 3, 8, 8)


def asked(anatomy, *kinds, longest=9):
    line = build_segments(anatomy)
    found = students_of(anatomy, line, find_spans(anatomy, line, longest), kinds)
    return {(one.kind, one.span.start, one.span.stop): one for one in found}


def test_a_block_is_a_copy_of_the_first_that_does_what_the_span_does_to_the_shape(resnet):
    found = asked(resnet, "block")
    assert found["block", 0, 3].stand_in.copies == ("layer1.0",)
    assert found["block", 1, 3].stand_in.copies == ("layer1.1",)
    assert found["block", 1, 5].stand_in.copies == ("layer2.0",)
    assert found["block", 3, 6].stand_in.copies == ("layer2.0",)
    assert ("block", 0, 1) not in found  # a copy of itself


def test_where_the_shape_changes_twice_there_are_two(resnet):
    found = asked(resnet, "block")
    assert ("block", 1, 8) not in found
    assert found["block2", 1, 8].stand_in.copies == ("layer2.0", "layer3.0")


def test_two_blocks_for_longer_spans_only(resnet):
    line, found = build_segments(resnet), asked(resnet, "block")
    assert two_blocks(resnet, found["block", 0, 2].span, line) is None
    two = two_blocks(resnet, found["block", 0, 3].span, line)
    assert (two.kind, two.stand_in.copies) == ("block2", ("layer1.0", "layer1.1"))
    assert two.name == "block2 layer1.0..layer1.2"
    across = two_blocks(resnet, found["block", 1, 5].span, line)
    assert across.stand_in.copies == ("layer1.1", "layer2.0")


def test_a_narrow_student_has_all_blocks_and_a_share_of_their_inner_features(resnet):
    found = asked(resnet, "narrow", "narrow1/4")
    one = found["narrow", 2, 4].stand_in
    assert one.copies == ("layer1.2", "layer2.0")
    assert [(inner.writers, inner.width) for inner in one.inner] == [
        (("layer1.2.conv1",), 2),
        (("layer2.0.conv1",), 4),
    ]
    assert [inner.width for inner in found["narrow1/4", 2, 4].stand_in.inner] == [1, 2]
    assert ("narrow", 0, 1) in found


def test_wide_ones_are_rounded_up_to_what_processors_like():
    anatomy = dissected(lambda: networks.CifarResNet(1, widths=(20, 40, 80)), 3, 8, 8)
    found = asked(anatomy, "narrow", "narrow1/4")
    widths = {key: found[key].stand_in.inner[0].width for key in found if key[2] - key[1] == 1}
    assert widths == {
        ("narrow", 0, 1): 16, ("narrow", 1, 2): 24, ("narrow", 2, 3): 40,
        ("narrow1/4", 0, 1): 5, ("narrow1/4", 1, 2): 16, ("narrow1/4", 2, 3): 24,
    }  # fmt: skip


def test_only_what_is_asked_for(resnet):
    assert asked(resnet, "conv3", "linear") == {}
    assert {kind for kind, *_ in asked(resnet, "conv3", "narrow")} == {"narrow"}


def test_plain_layers_get_none():
    assert asked(dissected(mlp, 4), "block", "narrow") == {}


class Told(nn.Module):
    """Blocks that are given a mask; each of them the same one, or one of its own."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 4)

        def forward(self, x, mask):
            return x + mask * self.fc2(torch.relu(self.fc1(x)))

    def __init__(self, *, own):
        super().__init__()
        self.blocks, self.own = nn.ModuleList(self.Block() for _ in range(3)), own
        self.head = nn.Linear(4, 2)
        self.stem = nn.Linear(4, 4)

    def forward(self, x):
        mask = torch.ones_like(x)
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, mask.clone() if self.own else mask)
        return self.head(x)


def test_blocks_that_are_told_different_things_get_none():
    assert ("block", 0, 2) in asked(dissected(lambda: Told(own=False), 4), "block", "narrow")
    found = asked(dissected(lambda: Told(own=True), 4), "block", "narrow")
    assert set(found) == {("narrow", 0, 1), ("narrow", 1, 2), ("narrow", 2, 3)}
