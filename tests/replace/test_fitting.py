import copy

import pytest
import torch
import torch.nn.functional as F
from given import VGG, mlp, randn, spans
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import DataError, NonFiniteError, UsageError
from shoal.regress import fit
from shoal.replace import ReplacementSpec, fit_all, split_by_memory
from shoal.replace.fitting import MomentsKey, SpanMoments
from shoal.replace.heldout_moments import HeldOutSamples
from shoal.replace.recording import recording
from shoal.replace.row_sampler import Window, extract_patches, gather_outputs, sample_grid


class Convolution(nn.Module):
    """A residual block whose sum is one convolution of its input."""

    def __init__(self, inputs, outputs, kernel=3, stride=1, tail=F.relu):
        super().__init__()
        self.branch = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        self.shortcut = nn.Identity() if (inputs, stride) == (outputs, 1) else nn.Conv2d(inputs, outputs, 1, stride)
        self.tail = tail

    def forward(self, x):
        out = self.branch(x) + self.shortcut(x)
        return self.tail(out) if self.tail is not None else out

    def whole(self):
        """Weight and bias of the sum as one convolution."""
        weight, bias, middle = self.branch.weight.detach().clone(), self.branch.bias.detach().clone(), self.branch
        at = middle.kernel_size[0] // 2
        if isinstance(self.shortcut, nn.Identity):
            weight[:, :, at, at] += torch.eye(len(weight), dtype=weight.dtype)
        else:
            weight[:, :, at, at] += self.shortcut.weight.detach()[:, :, 0, 0]
            bias += self.shortcut.bias.detach()
        return weight, bias


class Stack(nn.Module):
    def __init__(self, *blocks, width=3):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x):
        return self.blocks(F.relu(self.stem(x))).mean(dim=(2, 3))


class Mapping(nn.Module):
    """x + linear(x), on the last axis."""

    def __init__(self, width):
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x):
        return x + self.fc(x)


class Features(nn.Module):
    def __init__(self, width=4, depth=2):
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.blocks = nn.Sequential(*(Mapping(width) for _ in range(depth)))

    def forward(self, x):
        return self.blocks(self.embed(x))


def made(build, seed=0):
    torch.manual_seed(seed)
    return build().double().eval()


def data(count=3, size=8, side=7, dtype=torch.float64):
    return [Batch((randn(size, 3, side, side, seed=seed, dtype=dtype),)) for seed in range(count)]


@pytest.mark.parametrize(("outputs", "kernel", "stride"), [(3, 3, 1), (3, 1, 1), (3, 5, 1), (6, 3, 2), (6, 1, 2)])
def test_a_convolution_is_recovered(outputs, kernel, stride):
    model = made(lambda: Stack(Convolution(3, outputs, kernel, stride)))
    anatomy = analyze(model, Batch((randn(2, 3, 7, 7),)))
    [found] = fit_all(
        anatomy, data(), [ReplacementSpec(spans(anatomy)[0, 1], f"conv{kernel}" if kernel > 1 else "linear")]
    )
    weight, bias = model.blocks[0].whole()
    torch.testing.assert_close(found.module[0].weight, weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.module[0].bias, bias, rtol=0, atol=1e-6)
    assert found.r2_fit == pytest.approx(1, abs=1e-9)
    assert found.r2_held_out == pytest.approx(1, abs=1e-9)
    x = F.relu(model.stem(randn(4, 3, 7, 7, seed=9)))
    torch.testing.assert_close(found.module(x), model.blocks[0](x), rtol=0, atol=1e-6)


def test_two_pointwise_convolutions_are_one():
    blocks = lambda: Stack(Convolution(3, 3, 1, tail=None), Convolution(3, 6, 1, 2, tail=None))
    model = made(blocks)
    anatomy = analyze(model, Batch((randn(2, 3, 7, 7),)))
    [found] = fit_all(anatomy, data(), [ReplacementSpec(spans(anatomy)[0, 2], "linear")])
    x = F.relu(model.stem(randn(4, 3, 7, 7, seed=9)))
    torch.testing.assert_close(found.module(x), model.blocks(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(12, 4), (12, 6, 4)])
def test_linear_maps_on_features_and_tokens_are_recovered(shape):
    model = made(Features)
    batches = [Batch((randn(*shape, seed=seed),)) for seed in range(3)]
    anatomy = analyze(model, batches[0].take(2))
    [found] = fit_all(anatomy, batches, [ReplacementSpec(spans(anatomy)[0, 2], "linear")])
    assert isinstance(found.module[0], nn.Linear)
    first, second = (torch.eye(4, dtype=torch.float64) + block.fc.weight.detach() for block in model.blocks)
    bias = second @ model.blocks[0].fc.bias.detach() + model.blocks[1].fc.bias.detach()
    torch.testing.assert_close(found.module[0].weight.detach(), second @ first, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.module[0].bias.detach(), bias, rtol=0, atol=1e-6)
    x = model.embed(randn(*shape, seed=9))
    torch.testing.assert_close(found.module(x), model.blocks(x), rtol=0, atol=1e-6)
    assert (found.r2_fit, found.r2_held_out) == (pytest.approx(1), pytest.approx(1))


def network(widths=(3, 5, 7)):
    return made(lambda: networks.randomised(networks.CifarResNet(2, widths=widths)))


def test_ridge_zero_is_least_squares():
    """The same rows by torch.linalg.lstsq: all positions of the samples that are not held out."""
    model = network()
    batches = data(side=8)
    anatomy = analyze(model, batches[0].take(2))
    span = spans(anatomy)[1, 3]
    sums = SpanMoments(MomentsKey(span.paths[0], 2, 3), [ReplacementSpec(span, "conv3")], 24)
    rows, outputs, parts = [], [], HeldOutSamples()
    grid = sample_grid((4, 4), 99, torch.Generator())
    with torch.no_grad(), recording(anatomy, [span.paths[0], span.paths[-1]]) as seen:
        for batch in batches:
            model(*batch.args)
            sums.add(seen.inputs[span.paths[0]], [seen.sums[span.end]])
            for part in parts.split(batch.size)[1]:
                rows.append(extract_patches(seen.inputs[span.paths[0]][part], grid, Window(3, 2)))
                outputs.append(gather_outputs(seen.sums[span.paths[-1]][part], grid))
    x = torch.cat(rows)
    assert sums.sampler.per_sample >= 16
    assert sums.train.n == len(x)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1).double()], 1), torch.cat(outputs)).solution
    found = fit(sums.train, sums.held_out, ridges=[0.0])
    torch.testing.assert_close(found.weight, solution[:-1].T, rtol=0, atol=1e-8)
    torch.testing.assert_close(found.bias, solution[-1], rtol=0, atol=1e-8)


def test_many_ends_give_what_each_gives_alone():
    model = network()
    batches = data(side=8)
    anatomy = analyze(model, batches[0].take(2))
    wanted = [ReplacementSpec(span, kind) for span in spans(anatomy).values() for kind in ("conv3", "linear")]
    together = fit_all(anatomy, batches, wanted)
    assert {(one.span, one.kind) for one in together} == {(one.span, one.kind) for one in wanted}
    assert len({one.span.paths[0] for one in together}) == 6
    for one in together[::3]:
        [alone] = fit_all(anatomy, batches, [ReplacementSpec(one.span, one.kind)])
        torch.testing.assert_close(alone.module.state_dict(), one.module.state_dict(), rtol=0, atol=1e-10)
        assert (alone.ridge, alone.r2_fit) == (one.ridge, pytest.approx(one.r2_fit, abs=1e-9))


def test_the_same_seed_gives_the_same_fit_and_another_seed_another():
    model = network()
    batches = data(count=40, side=8)  # so many that positions are drawn
    anatomy = analyze(model, batches[0].take(2))
    wanted = [ReplacementSpec(spans(anatomy)[0, 1], "linear")]
    [one], [same], [other] = (fit_all(anatomy, batches, wanted, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.module[0].weight, same.module[0].weight)
    assert not torch.equal(one.module[0].weight, other.module[0].weight)


def test_the_teacher_is_left_as_it_was():
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    batches = data(side=8)
    given = batches[0].args[0].clone()
    anatomy = analyze(model, batches[0].take(2))
    modules, random = list(model.modules()), torch.get_rng_state()
    fit_all(anatomy, batches, [ReplacementSpec(span, "conv3") for span in spans(anatomy).values()])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(module.training for module in model.modules())
    assert list(model.modules()) == modules
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(given, batches[0].args[0])


def test_nan_in_the_activations_is_named():
    model = network()
    anatomy = analyze(model, Batch((randn(2, 3, 8, 8),)))
    batches = data(side=8)
    batches[1].args[0][0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"NaN or Inf in the activations at 'layer1\.1'"):
        fit_all(anatomy, batches, [ReplacementSpec(spans(anatomy)[1, 2], "conv3")])


def test_one_sample_cannot_be_split():
    model = network()
    anatomy = analyze(model, Batch((randn(2, 3, 8, 8),)))
    with pytest.raises(DataError, match="one sample cannot be split"):
        fit_all(anatomy, data(count=1, size=1, side=8), [ReplacementSpec(spans(anatomy)[1, 2], "conv3")])


def test_constant_channels_do_no_harm():
    model = made(lambda: Stack(Convolution(3, 3)))
    with torch.no_grad():
        model.stem.weight[1] = 0
        model.stem.bias[1] = 0.5
    anatomy = analyze(model, Batch((randn(2, 3, 7, 7),)))
    [found] = fit_all(anatomy, data(), [ReplacementSpec(spans(anatomy)[0, 1], "linear")])
    assert torch.isfinite(found.module[0].weight).all()
    [found] = fit_all(anatomy, data(), [ReplacementSpec(spans(anatomy)[0, 1], "conv3")])
    x = F.relu(model.stem(randn(4, 3, 7, 7, seed=9)))
    torch.testing.assert_close(found.module(x), model.blocks[0](x), rtol=0, atol=1e-5)


def test_fewer_rows_than_unknowns_stay_near_the_shortcut():
    model = network(widths=(8, 8, 8))
    batches = data(count=1, size=2, side=8)
    anatomy = analyze(model, batches[0].take(2))
    [found] = fit_all(anatomy, batches, [ReplacementSpec(spans(anatomy)[5, 6], "conv5")])  # 4 rows, 200 unknowns
    weight = found.module[0].weight.detach()
    assert torch.isfinite(weight).all()
    centre = weight[:, :, 2, 2]
    assert float((centre - torch.eye(8)).norm()) < float(centre.norm())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_fitted_and_stays_half(dtype):
    model = network().to(dtype)
    batches = data(side=8, dtype=dtype)
    anatomy = analyze(model, batches[0].take(2))
    [found] = fit_all(anatomy, batches, [ReplacementSpec(spans(anatomy)[1, 3], "conv3")])
    assert {one.dtype for one in found.module.parameters()} == {dtype}
    [exact] = fit_all(analyze(network(), data(side=8)[0].take(2)), data(side=8), [ReplacementSpec(found.span, "conv3")])
    assert found.r2_fit == pytest.approx(exact.r2_fit, abs=0.02)
    assert found.module(batches[0].args[0][:, :3]).dtype == dtype


def test_ticks_count_the_batches():
    model = network()
    anatomy = analyze(model, Batch((randn(2, 3, 8, 8),)))
    seen = []
    fit_all(
        anatomy,
        data(side=8),
        [ReplacementSpec(spans(anatomy)[1, 2], "linear")],
        on_progress=lambda *one: seen.append(one),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_a_name_that_is_no_kind_is_refused():
    anatomy = analyze(network(), Batch((randn(2, 3, 8, 8),)))
    with pytest.raises(UsageError, match=r"there is no replacement 'conv9'\n.*Choose from identity, scale, linear"):
        ReplacementSpec(spans(anatomy)[0, 1], "conv9")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_plain_chains_in_any_precision(dtype):
    """The sums are float64: a map of small integers that a half can hold is recovered to the bit."""
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(True), nn.Linear(4, 4), nn.SiLU(True), nn.Dropout(), nn.Linear(4, 2))
    with torch.no_grad():
        for layer in (chain[0], chain[2]):
            layer.weight.copy_(torch.randint(-2, 3, (4, 4)))
            layer.bias.copy_(torch.randint(-2, 3, (4,)))
    batches = [Batch((torch.randint(-3, 4, (30, 4)).to(dtype),)) for _ in range(3)]
    anatomy = analyze(chain.to(dtype).eval(), batches[0].take(2))
    [found] = fit_all(anatomy, batches, [ReplacementSpec(spans(anatomy)[1, 2], "linear")])
    assert {one.dtype for one in found.module.parameters()} == {dtype}
    torch.testing.assert_close(found.module[0].weight, chain[2].weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.module[0].bias, chain[2].bias, rtol=0, atol=1e-6)


def test_a_singular_gram_matrix_does_no_harm():
    """Behind a stem of rank two the other directions are never seen: there the shortcut stands."""
    model = made(lambda: Features(width=5, depth=1))
    with torch.no_grad():
        model.embed.weight.copy_(randn(5, 2) @ randn(2, 4, seed=1))
    batches = [Batch((randn(40, 4, seed=seed),)) for seed in range(3)]
    anatomy = analyze(model, batches[0].take(2))
    [found] = fit_all(anatomy, batches, [ReplacementSpec(spans(anatomy)[0, 1], "linear")])
    x = model.embed(randn(9, 4, seed=9))
    torch.testing.assert_close(found.module(x), model.blocks(x), rtol=0, atol=1e-6)
    seen = torch.linalg.svd(model.embed.weight.detach()).U[:, 2:]
    torch.testing.assert_close(found.module[0].weight.detach() @ seen, seen, rtol=0, atol=1e-5)


@pytest.mark.parametrize("build", [lambda: VGG(norm=True), lambda: mlp(norm=True)])
def test_plain_networks_are_left_as_they_were(build):
    model = made(build).train()
    shape = (3, 8, 8) if isinstance(model, VGG) else (4,)
    batches = [Batch((randn(10, *shape, seed=seed),)) for seed in range(2)]
    anatomy = analyze(model, batches[0].take(2))
    before = copy.deepcopy(model.state_dict())
    found = fit_all(anatomy, batches, [ReplacementSpec(span, "linear") for span in spans(anatomy).values()])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    again = fit_all(anatomy, batches, [ReplacementSpec(span, "linear") for span in spans(anatomy).values()])
    for one, other in zip(found, again, strict=True):
        torch.testing.assert_close(one.module.state_dict(), other.module.state_dict(), rtol=0, atol=0)


def test_portions_hold_whole_groups_and_everything_once():
    anatomy = analyze(network(), Batch((randn(2, 3, 8, 8),)))
    wanted = [ReplacementSpec(span, kind) for span in spans(anatomy).values() for kind in ("conv5", "linear", "conv3")]
    assert len(split_by_memory(wanted)) == 1
    portions = split_by_memory(wanted, 32 * 75**2 + 32 * 27**2)
    assert len(portions) > 3
    assert sorted(one.name for part in portions for one in part) == sorted(one.name for one in wanted)
    homes = {}
    for number, part in enumerate(portions):
        for one in part:
            assert homes.setdefault(one.key, number) == number
    assert split_by_memory([]) == []
