import pytest
import torch

import shoal
from shoal.errors import SpecError
from shoal.sources import load_model
from shoal.sources.builtin_networks import CifarPreactResNet, cifar_preact_resnet

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("depth", "params"), [(20, 0.27e6), (110, 1.73e6), (752, 12.1e6)])
def test_the_sizes_are_those_of_the_paper(depth, params):
    assert sum(p.numel() for p in CifarPreactResNet(depth).parameters()) == pytest.approx(params, rel=0.02)


def test_every_block_can_be_lost_and_a_shortcut_has_no_weights():
    model = cifar_preact_resnet("20")
    chain = shoal.trace(model, IMAGES)
    assert [block.stage for block in chain] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert all(block.removable for block in chain)
    assert {block.shortcut for block in chain} == {"identity", "reshape"}
    assert all(block.units[0].branch[-1].endswith("conv2") for block in chain)


def test_a_changing_shortcut_averages_and_fills_with_zeros():
    model = cifar_preact_resnet("8").eval()
    block = model.stages[1][0]
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 16, 8, 8)
    with torch.no_grad():
        out = block(x)
    assert torch.equal(out[:, 8:24], torch.nn.functional.avg_pool2d(x, 2))
    assert torch.count_nonzero(out[:, :8]) + torch.count_nonzero(out[:, 24:]) == 0


def test_the_number_of_classes_may_be_said():
    loaded = load_model("cifar-preact-resnet:8:100")
    assert (loaded.num_classes, loaded.model(IMAGES).shape) == (100, (2, 100))
    assert load_model("cifar-preact-resnet:8").num_classes == 10


@pytest.mark.parametrize("words", ["", "21", "2", "x", "20:x", "20:1"])
def test_other_depths_are_refused(words):
    with pytest.raises(SpecError, match=r"6n \+ 2|number of classes"):
        cifar_preact_resnet(words)
