import torch

from networks import PreactNet, randomised
from shoal.batches import Batch
from shoal.blocks import dissect
from shoal.scanning.means import branch_means


def test_the_mean_is_over_all_samples_whatever_the_mini_batches():
    model = randomised(PreactNet(width=4, depth=2))
    x = torch.randn(7, 1, 8, 8)
    anatomy = dissect(model, Batch((x[:2],)))
    one, other = branch_means(anatomy, [x]), branch_means(anatomy, [x[:2], x[2:]])
    assert set(one) == {("blocks.0", 0), ("blocks.1", 0)}
    for key, mean in one.items():
        assert mean.shape == (1, 4, 8, 8)
        torch.testing.assert_close(mean, other[key], atol=1e-6, rtol=1e-5)
    stream = model.stem(x)
    branch = (model.blocks[0](stream) - stream).double().mean(0, keepdim=True)
    torch.testing.assert_close(one["blocks.0", 0], branch, atol=1e-6, rtol=1e-5)


def test_a_branch_of_changing_shape_has_no_mean():
    model = randomised(PreactNet(width=4, depth=2))
    anatomy = dissect(model, Batch((torch.randn(2, 1, 8, 8),)))
    assert branch_means(anatomy, [torch.randn(2, 1, 8, 8), torch.randn(2, 1, 6, 6)]) == {}
