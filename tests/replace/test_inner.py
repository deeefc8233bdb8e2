import pytest
import torch
from given import dissected
from torch import nn

import networks
from shoal.replace.students.channel_groups import groups_of, importance


def test_the_features_between_two_convolutions_and_their_norm():
    anatomy = dissected(lambda: networks.CifarResNet(2, widths=(4, 8, 16)), 3, 8, 8)
    [group] = groups_of(anatomy, "layer2.0")
    assert (group.writers, group.keepers, group.readers) == (
        ("layer2.0.conv1",),
        ("layer2.0.bn1",),
        ("layer2.0.conv2",),
    )
    assert group.features == 8


def test_a_pre_activation_block_keeps_the_norm_of_its_stream():
    anatomy = dissected(lambda: networks.PreactNet(4, 2), 1, 6, 6)
    [group] = groups_of(anatomy, "blocks.1")
    assert group.keepers == ("blocks.1.bn2",)


class Inside(nn.Module):
    """A chain of three residual blocks with the branch that is asked for."""

    def __init__(self, make, width=6):
        super().__init__()
        self.stem = nn.Linear(3, width)
        self.blocks = nn.ModuleList(make(width) for _ in range(3))
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Gated(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.gate, self.up = nn.LayerNorm(width), nn.Linear(width, 10), nn.Linear(width, 10)
        self.down = nn.Linear(10, width)

    def forward(self, x):
        h = self.norm(x)
        return x + self.down(torch.nn.functional.silu(self.gate(h)) * self.up(h))


class Watched(Gated):
    """Somebody else reads the inner features."""

    def forward(self, x):
        h = self.up(self.norm(x))
        return x + self.down(h) * h.mean()


class Scaled(Gated):
    """A parameter of its own on the inner features."""

    def __init__(self, width):
        super().__init__(width)
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, x):
        return x + self.down(self.scale * self.up(self.norm(x)))


class Twice(Gated):
    """The reader is called twice."""

    def forward(self, x):
        h = self.up(self.norm(x))
        return x + self.down(h) + self.down(h.relu())


class Split(Gated):
    """The inner features are looked at one by one."""

    def forward(self, x):
        h = self.up(self.norm(x)).unflatten(-1, (2, 5)).flatten(-2)
        return x + self.down(h)


def test_a_gate_goes_together_with_what_it_gates():
    anatomy = dissected(lambda: Inside(Gated), 3)
    [group] = groups_of(anatomy, "blocks.0")
    assert (group.writers, group.readers) == (("blocks.0.gate", "blocks.0.up"), ("blocks.0.down",))
    assert group.features == 10


class Leaking(Gated):
    """The features are read behind the block."""

    def forward(self, x):
        self.seen = self.up(self.norm(x))
        return x + self.down(self.seen)


class Leaked(Inside):
    def forward(self, x):
        answer = super().forward(x)
        return answer + self.blocks[1].seen.relu()[..., :2]


def test_features_that_are_read_behind_the_block_stay():
    anatomy = dissected(lambda: Leaked(Leaking), 3)
    assert groups_of(anatomy, "blocks.1") == []
    assert len(groups_of(anatomy, "blocks.0")) == 1


@pytest.mark.parametrize("block", [Watched, Scaled, Twice, Split])
def test_features_that_something_else_sees_stay(block):
    assert groups_of(dissected(lambda: Inside(block), 3), "blocks.0") == []


def test_a_depthwise_convolution_works_on_each_feature_alone():
    torchvision = pytest.importorskip("torchvision")
    anatomy = dissected(lambda: torchvision.models.mobilenet_v2(weights=None), 3, 32, 32)
    [group] = groups_of(anatomy, "features.3")
    assert len(group.keepers) == 3  # two norms and the depthwise convolution
    assert group.features == 144


def test_attention_has_none_and_its_mlp_has():
    torchvision = pytest.importorskip("torchvision")
    made = torchvision.models.VisionTransformer(16, 8, 2, 2, 12, 24, num_classes=3)
    found = groups_of(dissected(lambda: made, 3, 16, 16), "encoder.layers.encoder_layer_0")
    assert [one.features for one in found] == [24]


def test_importance_is_what_arrives_at_the_readers():
    anatomy = dissected(lambda: networks.CifarResNet(1, widths=(4, 8, 16)), 3, 8, 8)
    model = anatomy.model
    [group] = groups_of(anatomy, "layer1.0")
    block = model.layer1[0]
    with torch.no_grad():
        block.conv1.weight.fill_(1.0)
        block.conv2.weight.fill_(1.0)
        block.bn1.running_var.fill_(1.0)
        block.bn1.weight.copy_(torch.tensor([0.5, -3.0, 1.0, 2.0]))
    assert importance(model, group).argsort(descending=True).tolist() == [1, 3, 2, 0]
    with torch.no_grad():
        block.conv2.weight[:, 1] = 0.0  # nobody listens
        block.bn1.running_var[3] = 100.0  # its norm makes it small
    assert importance(model, group).argsort(descending=True).tolist() == [2, 0, 3, 1]
    with torch.no_grad():
        block.conv1.weight[2] = 0.0
    assert importance(model, group)[2] == 0


def test_a_norm_without_statistics_scales_nothing_on_any_device():
    anatomy = dissected(lambda: networks.CifarResNet(1, widths=(4, 8, 16)), 3, 8, 8)
    model = anatomy.model
    [group] = groups_of(anatomy, "layer1.0")
    norm = model.layer1[0].bn1
    norm.running_mean = norm.running_var = None
    plain = model.layer1[0].conv1.weight.flatten(1).norm(dim=1) * model.layer1[0].conv2.weight.transpose(0, 1).flatten(
        1
    ).norm(dim=1)
    torch.testing.assert_close(importance(model, group), plain.detach())
    assert importance(model.to("meta"), group).device.type == "meta"
