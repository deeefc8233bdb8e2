import pytest
import torch
from torch import nn

from networks import PreactNet, randomised
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.blocks.prefix_cache import PrefixCache
from shoal.errors import DataError
from shoal.preserve import evaluating
from shoal.scanning.candidates import block_candidates
from shoal.scanning.means import branch_means


def test_the_mean_is_over_all_samples_whatever_the_mini_batches():
    model = randomised(PreactNet(width=4, depth=2))
    x = torch.randn(7, 1, 8, 8)
    anatomy = analyze(model, Batch((x[:2],)))
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
    anatomy = analyze(model, Batch((torch.randn(2, 1, 8, 8),)))
    assert branch_means(anatomy, [torch.randn(2, 1, 8, 8), torch.randn(2, 1, 6, 6)]) == {}


class Turned(nn.Module):
    """Its blocks see positions first, then samples."""

    def __init__(self):
        super().__init__()
        self.block = nn.ModuleList([PreNorm(), PreNorm()])

    def forward(self, x):
        x = x.transpose(0, 1)
        for block in self.block:
            x = block(x)
        return x.transpose(0, 1)


@pytest.mark.parametrize("samples", [1, 3, 5])
def test_a_branch_with_positions_first_has_no_mean(samples):
    """Also where there are as many positions as samples."""
    model = Turned().eval()
    anatomy = analyze(model, Batch((torch.randn(2, 5, 4),)))
    assert len(anatomy.chain) == 2
    assert branch_means(anatomy, [torch.randn(samples, 5, 4)] * 2) == {}


@pytest.mark.parametrize("side", [4, 16, 1])
def test_a_mean_serves_no_other_size(side):
    """A loader may give other sizes when it is read again."""
    model = randomised(PreactNet(width=4, depth=2))
    anatomy = analyze(model, Batch((torch.randn(2, 1, 8, 8),)))
    means = branch_means(anatomy, [torch.randn(4, 1, side, side)])
    [candidate] = [one for one in block_candidates(anatomy, means) if one.key == "mean:blocks.1"]
    prefix = PrefixCache(anatomy)
    with evaluating(model):
        prefix.record(Batch((torch.randn(4, 1, side, side),)))
        assert candidate.run(prefix).shape == (4, 10)
        prefix.record(Batch((torch.randn(4, 1, 8, 8),)))
        with pytest.raises(DataError, match="the loader gives other sizes when it is read again"):
            candidate.run(prefix)


class Tokens(nn.Module):
    """A residual block on embedded tokens."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.block = nn.ModuleList([PreNorm(), PreNorm()])

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        for one in self.block:
            x = one(x)
        return x


class PreNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up = nn.LayerNorm(4), nn.Linear(4, 4)

    def forward(self, x):
        return x + self.up(self.norm(x))


def test_padding_is_in_no_mean():
    torch.manual_seed(0)
    model = Tokens().eval()
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    ids = torch.tensor([[1, 2, 3], [4, 5, 0], [6, 0, 0]])
    loader = [{"input_ids": ids[:2], "attention_mask": mask[:2]}, {"input_ids": ids[2:], "attention_mask": mask[2:]}]
    anatomy = analyze(model, Batch(kwargs={"input_ids": ids, "attention_mask": mask}))
    found = branch_means(anatomy, loader)["block.0", 0]
    with torch.no_grad():
        branch = model.block[0].up(model.block[0].norm(model.embed(ids))).double()
    expected = [branch[:3, 0].mean(0), branch[:2, 1].mean(0), branch[0, 2]]
    assert torch.allclose(found[0], torch.stack(expected), atol=1e-6)
    again = branch_means(anatomy, [{"input_ids": torch.where(mask == 1, ids, 8), "attention_mask": mask}])["block.0", 0]
    assert torch.allclose(found, again, atol=1e-6)
