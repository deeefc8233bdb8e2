import copy

import pytest
import torch
from given import VGG, made, mlp, spans
from torch import nn

import language
import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import DataError, ModelRaisedError, NonFiniteError
from shoal.plan import Replace
from shoal.replace import (
    RefitConfig,
    ReplacementSpec,
    build_segments,
    fit_all,
    recording,
    refit_,
    students_of,
    train_students,
)
from shoal.replace.heldout_moments import HeldOutSamples
from shoal.replace.last_linear import LastLinear, network_head
from shoal.replace.refit import improves
from shoal.surgery import remove_blocks_
from shoal.surgery.replace import replace_spans_
from shoal.training import TrainingBudget


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def data(*shape, count=3):
    return [Batch((randn(*shape, seed=seed),)) for seed in range(count)]


def teacher(batches):
    torch.manual_seed(0)
    return analyze(networks.randomised(networks.CifarResNet(2, widths=(4, 8, 16))), batches[0].take(2))


def fitted(anatomy, batches, start, stop, kind="conv3"):
    return fit_all(anatomy, batches, [ReplacementSpec(spans(anatomy)[start, stop], kind)])[0]


def student(anatomy, batches, one, removed=()):
    """The original with a stand-in in it, and some blocks gone."""
    own = analyze(copy.deepcopy(anatomy.model), batches[0].take(2))
    actions = [Replace(paths=list(one.span.paths), stand_in=one.stand_in)]
    replace_spans_(own, actions, {one.span.paths[0]: copy.deepcopy(one.module)})
    return remove_blocks_(own, list(removed)).eval()


def error(anatomy, model, one, batches):
    """Mean squared error of the stand-in's sum, on what really enters it."""
    module, total = model.get_submodule(one.span.paths[0]), 0.0
    caught = []
    handle = module.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    with torch.no_grad(), recording(anatomy, [one.span.end]) as seen:
        for batch in batches:
            anatomy.model(*batch.args)
            model(*batch.args)
            made = caught[-1] + module.branch(caught[-1]) if one.stand_in.shortcut else module[0](caught[-1])
            total += float((made - seen.sums[one.span.end]).square().mean())
    handle.remove()
    return total


@pytest.mark.parametrize("place", [(2, 4), (3, 4)])
def test_a_refit_makes_good_what_an_upstream_removal_did(place):
    batches = data(16, 3, 8, 8)
    anatomy = teacher(batches)
    one = fitted(anatomy, batches, *place)
    model = student(anatomy, batches, one, ["layer1.0", "layer1.1"])
    before, others = error(anatomy, model, one, batches), copy.deepcopy(model.state_dict())
    refit_(anatomy, model, [one], batches, removed=["layer1.0", "layer1.1"], config=RefitConfig(kept_segments=False))
    assert error(anatomy, model, one, batches) < 0.9 * before
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, others[name])}
    assert changed == {f"{one.span.paths[0]}.0.weight", f"{one.span.paths[0]}.0.bias"}


def test_where_nothing_was_changed_upstream_the_fit_stands():
    batches = data(16, 3, 8, 8)
    anatomy = teacher(batches)
    one = fitted(anatomy, batches, 1, 3)
    model = student(anatomy, batches, one)
    refit_(anatomy, model, [one], batches)
    torch.testing.assert_close(model.layer1[1].state_dict(), one.module.state_dict(), rtol=1e-4, atol=1e-4)


def test_tokens():
    torch.manual_seed(0)
    batches = data(16, 6, 4)
    anatomy = analyze(networks.NumberedNet(8).eval(), batches[0].take(2))
    one = fitted(anatomy, batches, 1, 3, "linear")
    model = student(anatomy, batches, one, ["block1"])
    before = error(anatomy, model, one, batches)
    refit_(anatomy, model, [one], batches, removed=["block1"], config=RefitConfig(kept_segments=False))
    assert error(anatomy, model, one, batches) < before


def test_a_low_rank_stand_in_is_refitted_within_its_rank():
    batches = data(16, 3, 8, 8)
    torch.manual_seed(0)
    anatomy = analyze(networks.randomised(networks.CifarResNet(2, widths=(16, 16, 16))), batches[0].take(2))
    one = fitted(anatomy, batches, 1, 2, "lowrank3/8")
    model = student(anatomy, batches, one, ["layer1.0"])
    before = error(anatomy, model, one, batches)
    refit_(anatomy, model, [one], batches, removed=["layer1.0"], config=RefitConfig(kept_segments=False))
    assert error(anatomy, model, one, batches) < before
    assert model.layer1[1].branch[0].out_channels == 2


def test_neither_teacher_nor_data_nor_modes_change():
    batches = data(8, 3, 8, 8)
    anatomy = teacher(batches)
    one = fitted(anatomy, batches, 1, 3)
    model = student(anatomy, batches, one).train()
    before, given = copy.deepcopy(anatomy.model.state_dict()), [batch.args[0].clone() for batch in batches]
    refit_(anatomy, model, [one], batches)
    torch.testing.assert_close(anatomy.model.state_dict(), before, rtol=0, atol=0)
    assert all(torch.equal(batch.args[0], image) for batch, image in zip(batches, given, strict=True))
    assert all(module.training for module in model.modules())
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())


class Normalising(networks.CifarResNet):
    """Changes its input in place."""

    def forward(self, x):
        x -= 0.5
        return super().forward(x)


def test_a_network_that_changes_its_input_in_place_does_not_change_the_data():
    torch.manual_seed(0)
    batches = data(8, 3, 8, 8)
    given = [batch.args[0].clone() for batch in batches]
    anatomy = analyze(networks.randomised(Normalising(2, widths=(4, 8, 16))), batches[0].cloned())
    one = fitted(anatomy, batches, 1, 3)
    model = student(anatomy, [batches[0].cloned()], one)
    refit_(anatomy, model, [one], batches)
    assert all(torch.equal(batch.args[0], image) for batch, image in zip(batches, given, strict=True))


def test_nan_is_refused():
    batches = data(8, 3, 8, 8)
    anatomy = teacher(batches)
    one = fitted(anatomy, batches, 1, 3)
    model = student(anatomy, batches, one)
    batches[0].args[0][:] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN or Inf"):
        refit_(anatomy, model, [one], batches)


class Mapping(nn.Module):
    """x + linear(x): whatever a block before it did, this one can do too."""

    def __init__(self, width, bias=True):
        super().__init__()
        self.fc = nn.Linear(width, width, bias)

    def forward(self, x):
        return x + self.fc(x)


class Mappings(nn.Module):
    def __init__(self, depth=4, gap=False, bias=True):
        super().__init__()
        self.embed, self.gap = nn.Linear(4, 4), gap
        self.blocks = nn.ModuleList(Mapping(4, bias) for _ in range(depth))

    def forward(self, x):
        x = self.embed(x)
        for number, block in enumerate(self.blocks):
            x = block(x if not self.gap or number != 2 else x.tanh())
        return x


def doubles(size=40, *shape, count=3):
    return [Batch((batch.args[0].double(),)) for batch in data(size, *(shape or (4,)), count=count)]


def sums(anatomy, model, path, batches):
    """The sums of a step in the original, and in a cut network that still has it."""
    twin = analyze(model, batches[0].take(2))
    made = []
    for one in (anatomy, twin):
        with torch.no_grad(), recording(one, [path]) as seen:
            found = []
            for batch in batches:
                one.model(*batch.args)
                found.append(seen.sums[path])
        made.append(torch.cat(found))
    return made


def distance(anatomy, model, path, batches):
    one, other = sums(anatomy, model, path, batches)
    return float((one - other).square().mean())


def cut(anatomy, batches, *removed):
    return remove_blocks_(analyze(copy.deepcopy(anatomy.model), batches[0].take(2)), list(removed)).eval()


@pytest.mark.parametrize(("gap", "bias"), [(False, True), (True, True), (False, False)])
def test_kept_blocks_make_good_what_was_removed(gap, bias):
    """Behind the removal one linear block can do the work of two; also where the chain is interrupted."""
    batches = doubles()
    anatomy = analyze(made(lambda: Mappings(gap=gap, bias=bias)), batches[0].take(2))
    gone, *rest = ["blocks.2", "blocks.3"] if gap else ["blocks.1", "blocks.2", "blocks.3"]
    model = cut(anatomy, batches, gone)
    plain = refit_(anatomy, copy.deepcopy(model), [], batches, removed=[gone], config=RefitConfig(kept_segments=False))
    for path in rest:
        before = distance(anatomy, model, path, batches)
        assert before > 1e-2
        assert distance(anatomy, plain, path, batches) == before
    untouched = copy.deepcopy(model.blocks[0].state_dict())
    assert refit_(anatomy, model, [], batches, removed=[gone]) is model
    for path in rest:
        assert distance(anatomy, model, path, batches) < 1e-9
    # What is removed is made up for by the block right before it; those before that are as they were.
    assert all(torch.equal(value, untouched[name]) for name, value in model.blocks[0].state_dict().items()) == gap
    fresh = doubles(30)[::-1]
    assert distance(anatomy, model, rest[-1], fresh) < 1e-9


def test_only_blocks_within_reach_of_a_change_are_refitted():
    batches = data(16, 3, 8, 8)
    anatomy = teacher(batches)
    cut_model = cut(anatomy, batches, "layer1.1")
    before = cut_model.state_dict()

    def refitted(reach):
        """The layers that a refit changes."""
        model = copy.deepcopy(cut_model)
        refit_(anatomy, model, [], batches, removed=["layer1.1"], config=RefitConfig(reach=reach))
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        return {name[: len("layer1.0")] for name in changed}

    behind = ["layer2.0", "layer2.1"]
    everywhere = refitted(None)
    assert {*behind, "linear.w"} <= everywhere
    assert [refitted(reach) for reach in range(3)] == [set(behind[:reach]) for reach in range(3)]


class Scaled(nn.Module):
    """Blocks x + factor * down(relu(up(norm(x)))) on tokens."""

    class Block(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor
            self.norm, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 9), nn.Linear(9, 4)

        def forward(self, x):
            branch = self.down(self.up(self.norm(x)).relu())
            return x + (branch if self.factor == 1 else self.factor * branch)

    def __init__(self, factor):
        super().__init__()
        self.embed = nn.Linear(4, 4)
        self.blocks = nn.Sequential(*(self.Block(factor) for _ in range(4)))

    def forward(self, x):
        return self.blocks(self.embed(x))


@pytest.mark.parametrize("factor", [1, 0.5])
def test_what_leaves_a_refitted_block_is_what_the_block_computes(factor, monkeypatch):
    """Where the layer's output is added as it is, the block does not run again; the next blocks see the same."""
    batches = doubles(20, 5, 4)
    anatomy = analyze(made(lambda: Scaled(factor)), batches[0].take(2))
    one = fitted(anatomy, batches, 0, 1, "linear")
    monkeypatch.setattr("shoal.replace.refit._MIN_SAMPLES", 10**9)  # every refit stands
    results = []
    for run_again in (False, True):
        if run_again:
            monkeypatch.setattr(LastLinear, "is_added_as_it_is", property(lambda _: False))
        results.append(refit_(anatomy, student(anatomy, batches, one), [one], batches).state_dict())
    for name in ("blocks.2.down.weight", "blocks.3.down.weight"):
        assert not torch.equal(results[0][name], anatomy.model.state_dict()[name])
    torch.testing.assert_close(results[0], results[1])


def streams(seed, samples=20, scale=1.0):
    return scale * torch.randn(samples, 6, 4, generator=torch.Generator().manual_seed(seed))


def test_a_refit_stands_only_where_it_helps_the_samples_held_out_beyond_chance():
    target = streams(0, 40)
    worse, better = target + streams(1, 40, 0.5), target + streams(2, 40, 0.1)
    assert improves([target], [worse], [better])
    assert not improves([target], [better], [worse])
    assert not improves([target], [worse], [worse])
    # Of 8 samples held out one gains much, and the others lose.
    held, others = HeldOutSamples().split(40)
    uneven = worse.clone()
    uneven[held] = target[held] + 1.3 * streams(1, 40, 0.5)[held]
    uneven[held.start] = target[held.start]
    assert not improves([target], [worse], [uneven])
    # Only those held out count.
    elsewhere = better.clone()
    for part in others:
        elsewhere[part] = 1e3
    assert improves([target], [worse], [elsewhere])


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_refit_is_judged_in_mini_batches_of_any_size(size):
    target = streams(0, 40)
    worse, better = (list((target + streams(1, 40, error)).split(size)) for error in (0.5, 0.1))
    assert improves(target.split(size), worse, better)
    assert not improves(target.split(size), better, worse)


def test_a_token_of_large_size_does_not_decide_whether_a_refit_stands():
    target = streams(0, 40)
    target[:, 0] *= 1000
    worse, other = target + streams(1, 40, 0.5), target + streams(2, 40, 0.6)
    other[:, 0], worse[:, 0] = target[:, 0], target[:, 0] + 10
    assert not improves([target], [worse], [other])


def test_blocks_behind_a_gap_are_refitted_from_what_enters_them():
    batches = doubles()
    anatomy = analyze(made(lambda: Mappings(gap=True)), batches[0].take(2))
    model = cut(anatomy, batches, "blocks.1")
    before = {path: distance(anatomy, model, path, batches) for path in ("blocks.2", "blocks.3")}
    refit_(anatomy, model, [], batches, removed=["blocks.1"])
    for path, was in before.items():
        assert distance(anatomy, model, path, batches) < 0.9 * was


KEPT = {
    "post-activation": (lambda: networks.CifarResNet(3, widths=(4, 6, 8)), (3, 8, 8), ["layer1.1"]),
    "pre-activation": (lambda: networks.PreactNet(4, 4), (1, 6, 6), ["blocks.1"]),
    "tokens": (lambda: networks.NumberedNet(6), (5, 4), ["block1"]),
}


@pytest.mark.parametrize("name", KEPT)
def test_no_refitted_sum_is_further_from_the_original_than_before(name):
    build, shape, removed = KEPT[name]
    batches = doubles(40, *shape)
    anatomy = analyze(made(build), batches[0].take(2))
    model = cut(anatomy, batches, *removed)
    line = build_segments(anatomy).paths
    behind = line[line.index(removed[0]) + 1 :]
    before = {path: distance(anatomy, model, path, batches) for path in behind}
    state = copy.deepcopy(model.state_dict())
    refit_(anatomy, model, [], batches, removed=removed)
    after = {path: distance(anatomy, model, path, batches) for path in behind}
    assert all(after[path] <= before[path] for path in behind), (before, after)
    assert after[behind[0]] < 0.95 * before[behind[0]]
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, state[key])}
    assert changed
    head = network_head(anatomy, build_segments(anatomy), 99)
    places = (*behind, head.layer)
    assert all(key.startswith(places) and key.split(".")[-1] in ("weight", "bias") for key in changed)


def test_channels_that_are_switched_off_stay_so():
    batches = doubles(40, 3, 8, 8)
    anatomy = analyze(made(lambda: networks.CifarResNet(2, widths=(4, 6, 8))), batches[0].take(2))
    with torch.no_grad():
        anatomy.model.layer2[0].bn2.weight[:2] = 0
    model = cut(anatomy, batches, "layer1.1")
    old = copy.deepcopy(model.layer2[0].state_dict())
    refit_(anatomy, model, [], batches, removed=["layer1.1"])
    fresh = model.layer2[0].state_dict()
    for key in ("conv2.weight", "bn2.weight", "bn2.bias"):
        assert torch.equal(fresh[key][:2], old[key][:2])
    assert not torch.equal(fresh["conv2.weight"][2:], old["conv2.weight"][2:])


def plain_student(anatomy, batches, one):
    own = analyze(copy.deepcopy(anatomy.model), batches[0].take(2))
    action = Replace(paths=list(one.span.paths), stand_in=one.stand_in)
    return replace_spans_(own, [action], {one.span.paths[0]: copy.deepcopy(one.module)}).eval()


@pytest.mark.parametrize(
    ("build", "shape", "place", "kind", "later"),
    [
        (lambda: VGG(norm=True), (3, 8, 8), (1, 2), "identity", ["features.7", "features.10"]),
        (VGG, (3, 8, 8), (1, 4), "linear", ["features.7", "classifier.0", "classifier.6"]),
        (lambda: mlp(8, 4, act=nn.SiLU, norm=True), (4,), (1, 2), "scale", ["6", "10", "14"]),
        (lambda: mlp(8, 4, act=nn.GELU), (5, 4), (0, 2), "linear", ["5", "8", "11"]),
    ],
)
def test_plain_chains(build, shape, place, kind, later):
    batches = doubles(60, *shape)
    anatomy = analyze(made(build), batches[0].take(2))
    one = fitted(anatomy, batches, *place, kind)
    model = plain_student(anatomy, batches, one)
    later = [path for path in later if path in build_segments(anatomy).paths]
    assert later

    def distances():
        found, wanted = {}, {}
        handles = [
            net.get_submodule(path).register_forward_hook(
                lambda _, args, output, path=path, kept=kept: kept.setdefault(path, []).append(output.clone())
            )
            for net, kept in ((anatomy.model, wanted), (model, found))
            for path in later
        ]
        with torch.no_grad():
            for batch in batches:
                anatomy.model(*batch.args)
                model(*batch.args)
        for handle in handles:
            handle.remove()
        pairs = {path: (torch.cat(found[path]), torch.cat(wanted[path])) for path in later}
        return {path: float((a - b).square().mean()) for path, (a, b) in pairs.items()}

    before = distances()
    refit_(anatomy, model, [one], batches)
    after = distances()
    last = later[-1]
    assert after[last] < 0.9 * before[last]
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())


def test_the_same_seed_gives_the_same_network():
    batches = data(40, 3, 8, 8, count=8)
    anatomy = teacher(batches)
    one = fitted(anatomy, batches, 1, 3, "linear")
    models = [
        refit_(anatomy, student(anatomy, batches, one), [one], batches, config=RefitConfig(seed=seed)).state_dict()
        for seed in (3, 3, 4)
    ]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
    assert any(not torch.equal(models[0][key], models[2][key]) for key in models[0])


@pytest.mark.parametrize(("memory", "used"), [(1e9, 24), (20480, 10), (18432, 9), (1, 2)])
def test_less_memory_means_fewer_samples(memory, used):
    """A sample takes 2048 bytes, 4 x 8 x 8 values in both networks."""
    batches = data(8, 3, 8, 8)
    anatomy = teacher(batches)
    one = fitted(anatomy, batches, 1, 3)
    model = student(anatomy, batches, one)
    seen = []
    handle = model.conv1.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    refit_(anatomy, model, [one], batches, config=RefitConfig(memory=memory))
    handle.remove()
    assert sum(seen) == 2 * used  # once more for what enters the head


def test_mini_batches_of_one_image_are_used_and_one_image_is_refused():
    batches = data(8, 3, 8, 8)
    anatomy = teacher(batches)
    one = fitted(anatomy, batches, 1, 3)
    model = student(anatomy, batches, one)
    before = error(anatomy, model, one, batches)
    refit_(anatomy, model, [one], [part for batch in batches for part in batch.divided(8)])
    assert error(anatomy, model, one, batches) < before
    with pytest.raises(DataError, match="one sample cannot be split"):
        refit_(anatomy, student(anatomy, batches, one), [one], [batches[0].take(1)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_stays_half(dtype):
    batches = [Batch((batch.args[0].to(dtype),)) for batch in data(16, 3, 8, 8)]
    torch.manual_seed(0)
    model = networks.randomised(networks.CifarResNet(2, widths=(4, 8, 16))).to(dtype)
    anatomy = analyze(model, batches[0].take(2))
    one = fitted(anatomy, batches, 3, 4)
    twin = student(anatomy, batches, one, ["layer1.0", "layer1.1"])
    before = error(anatomy, twin, one, batches)
    refit_(anatomy, twin, [one], batches, removed=["layer1.0", "layer1.1"])
    assert error(anatomy, twin, one, batches) < before
    assert {part.dtype for part in twin.parameters()} == {dtype}


def test_fewer_rows_than_unknowns_stay_finite_and_no_worse_where_they_were_fitted():
    batches = [Batch((one.args[0][:3],)) for one in doubles(8, 3, 8, 8, count=1)]
    anatomy = analyze(made(lambda: networks.CifarResNet(2, widths=(8, 8, 8))), batches[0].take(2))
    model = cut(anatomy, batches, "layer2.1")
    before = distance(anatomy, model, "layer3.0", batches)
    refit_(anatomy, model, [], batches, removed=["layer2.1"])
    assert all(torch.isfinite(part).all() for part in model.parameters())
    assert distance(anatomy, model, "layer3.0", batches) <= before


def test_without_a_change_nothing_happens():
    batches = data(8, 3, 8, 8)
    anatomy = teacher(batches)
    model = copy.deepcopy(anatomy.model)
    assert refit_(anatomy, model, [], batches) is model
    state = anatomy.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_ticks_count_the_steps_behind_the_first_change():
    batches = data(8, 3, 8, 8)
    anatomy = teacher(batches)
    one = fitted(anatomy, batches, 1, 3)
    seen = []
    refit_(anatomy, student(anatomy, batches, one), [one], batches, on_progress=lambda *now: seen.append(now))
    assert seen == [(3, 6), (4, 6), (5, 6), (6, 6)]


def test_an_error_of_the_network_itself_is_readable():
    batches = data(8, 3, 8, 8)
    anatomy = teacher(batches)
    one = fitted(anatomy, batches, 1, 3)
    model = student(anatomy, batches, one)
    with pytest.raises(ModelRaisedError, match=r"input of shape \(4, 7, 8, 8\)"):
        refit_(anatomy, model, [one], data(4, 7, 8, 8))
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())


def test_a_refit_walks_past_a_student_and_fits_what_is_behind_it():
    batches = data(16, 3, 8, 8)
    anatomy = teacher(batches)
    line = build_segments(anatomy)
    [asked] = students_of(anatomy, line, [spans(anatomy)[1, 3]], ["block"])
    one = train_students(anatomy, batches, [asked], budget=TrainingBudget(steps=1)).fitted[0]
    own = student(anatomy, batches, one)
    before = {name: value.clone() for name, value in own.get_submodule("layer1.1").state_dict().items()}
    twin = refit_(anatomy, copy.deepcopy(own), [one], batches)
    for name, value in twin.get_submodule("layer1.1").state_dict().items():
        assert torch.equal(value, before[name])
    assert not torch.equal(twin.layer3[0].conv2.weight, own.layer3[0].conv2.weight)
    with torch.no_grad():
        off = [sum(float((net(b.args[0]) - anatomy.model(b.args[0])).square().mean()) for b in batches)
               for net in (own, twin)]  # fmt: skip
    assert off[1] < off[0]


def test_a_decoder_is_not_refitted_through_the_teachers_cache():
    batches = [Batch(kwargs={"input_ids": language.tokens(8, 12, seed=seed)}) for seed in range(3)]
    twins = []
    for cache in (True, False):
        anatomy = analyze(language.llama(), batches[0].take(2))
        anatomy.model.config.use_cache = cache
        one = fitted(anatomy, batches, 0, 1, "linear")
        own = student(anatomy, batches, one)
        refit_(anatomy, own, [one], batches)
        assert (anatomy.model.config.use_cache, own.config.use_cache) == (cache, cache)
        twins.append(own.state_dict())
    assert all(torch.equal(value, twins[1][name]) for name, value in twins[0].items())


class TwoUnits(nn.Module):
    """Token blocks of two units: x + mix(tanh(norm(x))), then x + down(relu(up(norm(x))))."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.mix = nn.LayerNorm(4), nn.Linear(4, 4)
            self.second, self.up, self.down = nn.LayerNorm(4), nn.Linear(4, 9), nn.Linear(9, 4)

        def forward(self, x):
            x = x + self.mix(self.norm(x).tanh())
            return x + self.down(self.up(self.second(x)).relu())

    def __init__(self):
        super().__init__()
        self.embed, self.blocks = nn.Linear(4, 4), nn.Sequential(*(self.Block() for _ in range(4)))

    def forward(self, x):
        return self.blocks(self.embed(x))


def test_every_unit_of_a_kept_block_is_refitted():
    batches = doubles(40, 5, 4)
    original = made(TwoUnits)
    with torch.no_grad():
        original.blocks[1].mix.weight.mul_(4)  # what it adds, `mix` of the next block can add better than any other map
        original.blocks[1].down.weight.zero_()
    anatomy = analyze(original, batches[0].take(2))
    model = cut(anatomy, batches, "blocks.1")
    state = copy.deepcopy(model.state_dict())
    sums = {}

    def behind(net):
        handle = net.blocks[2].second.register_forward_pre_hook(lambda _, args: sums.__setitem__("x", args[0]))
        with torch.no_grad():
            net(*batches[0].args)
        handle.remove()
        return sums["x"]

    target, before = behind(anatomy.model), behind(model)
    refit_(anatomy, model, [], batches, removed=["blocks.1"], config=RefitConfig(reach=1))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, state[key])}
    changed = {key.rpartition(".")[0] for key in changed}
    assert {"blocks.0.down", "blocks.2.mix"} <= changed <= {"blocks.0.down", "blocks.2.mix", "blocks.2.down"}
    assert (behind(model) - target).square().sum() < 0.9 * (before - target).square().sum()
