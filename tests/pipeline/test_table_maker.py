import pytest
import torch
from torch import nn

import networks
import stopwatch
from shoal.batches import Batch
from shoal.blocks import dissect
from shoal.measure import kl_per_sample, log_probabilities
from shoal.pipeline import table_maker as room
from shoal.pipeline.table_maker import TableMaker
from shoal.replace import build
from shoal.surgery import remove_blocks


def batches(*shape, count=2, first=0):
    return [
        Batch((torch.randn(*shape, generator=torch.Generator().manual_seed(seed)),))
        for seed in range(first, first + count)
    ]


def network(n=2):
    torch.manual_seed(0)
    return networks.randomised(networks.CifarResNet(n, widths=(4, 8, 16)))


def maker(model=None, shape=(12, 3, 8, 8), **more):
    data = batches(*shape)
    anatomy = dissect(model if model is not None else network(), data[0].take(2))
    return TableMaker(anatomy, data, batches(*shape, first=9), data[0], **more)


@pytest.fixture(autouse=True)
def _fake_clock(monkeypatch):
    stopwatch.install(monkeypatch)


@pytest.fixture(scope="module")
def made():
    with pytest.MonkeyPatch.context() as patch:
        stopwatch.install(patch)
        one = maker()
        return one, one.make()


def kl(original, other, judged):
    """Mean KL over the mini-batches of two networks that are run whole."""
    with torch.no_grad():
        parts = [kl_per_sample(log_probabilities(original(x), None), other(x)) for x in (b.args[0] for b in judged)]
    return float(torch.cat(parts).mean())


def test_keeping_everything_costs_what_the_whole_costs(made):
    _, tables = made
    keeps = [one for one in tables.edges if one.action == "keep"]
    assert [(one.start, one.stop) for one in keeps] == [(i, i + 1) for i in range(6)]
    assert {one.damage for one in keeps} == {0.0}
    for name in ("latency_ms", "macs", "params"):
        total = sum(getattr(one, name) for one in keeps) + getattr(tables.fixed, name)
        assert total == pytest.approx(getattr(tables.whole, name))
        assert 0 < getattr(tables.fixed, name) < getattr(tables.whole, name)
    assert tables.whole.params == sum(one.numel() for one in network().parameters())


def test_damage_of_a_removal_is_that_of_the_network_cut_for_good(made):
    one, tables = made
    removals = [edge for edge in tables.edges if edge.action == "remove"]
    assert len(removals) == 6
    for edge in removals:
        cut = remove_blocks(network(), one.fit_on[0].take(2), [tables.line.paths[edge.start]])
        assert edge.damage == pytest.approx(kl(network(), cut, one.judge_on), rel=1e-5)
        assert edge.damage > 0


def test_damage_of_a_stand_in_is_that_of_the_network_with_it_in_place(made):
    one, tables = made
    assert tables.fitted
    for index, fitted in list(tables.fitted.items())[::4]:
        edge, model = tables.edges[index], network()
        assert (edge.action, edge.kind, edge.depth) == ("replace", fitted.kind, 1)
        assert (edge.start, edge.stop) == (fitted.span.start, fitted.span.stop)
        model.set_submodule(fitted.span.paths[0], fitted.module)
        for path in fitted.span.paths[1:]:
            model.set_submodule(path, nn.Identity())
        assert edge.damage == pytest.approx(kl(network(), model, one.judge_on), rel=1e-5)


def test_worths_are_those_of_the_removals_with_an_interval(made):
    _, tables = made
    assert [worth.path for worth in tables.worths] == list(tables.line.paths)
    for worth in tables.worths:
        low, high = worth.interval
        assert low <= worth.damage <= high
        assert worth.n == 24


def test_stand_ins_are_cheaper_than_their_span(made):
    _, tables = made
    keeps = {edge.start: edge.latency_ms for edge in tables.edges if edge.action == "keep"}
    spans = {(edge.start, edge.stop) for index, edge in enumerate(tables.edges) if index in tables.fitted}
    assert (0, 1) in spans
    for index in tables.fitted:
        edge = tables.edges[index]
        assert edge.latency_ms < sum(keeps[number] for number in range(edge.start, edge.stop))


def test_a_stand_in_that_costs_no_less_is_dropped(monkeypatch):
    def slow_pointwise(models, batch, **_):
        slow = {name for name, one in models.items() if isinstance(one, nn.Sequential) and one[0].kernel_size == (1, 1)}
        return {
            name: stopwatch.taking(1e6 if name in slow else stopwatch.milliseconds(one, batch))
            for name, one in models.items()
        }

    monkeypatch.setattr(room, "latency", slow_pointwise)
    tables = maker(longest=2).make()
    assert {one.kind for one in tables.fitted.values()} == {"conv3"}
    assert {one.kind for one in tables.edges if one.action == "replace"} == {"conv3"}


def test_no_span_is_longer_than_asked():
    tables = maker(longest=2, kinds=("conv1",)).make()
    assert {one.stop - one.start for one in tables.edges} == {1, 2}
    assert {one.kind for one in tables.fitted.values()} == {"conv1"}


def test_excluded_blocks_are_never_touched():
    allowed = frozenset({"layer1.0", "layer1.1", "layer2.1", "layer3.0"})
    tables = maker(allowed=allowed).make()
    touched = set()
    for edge in tables.edges:
        if edge.action != "keep":
            touched |= set(tables.line.paths[edge.start : edge.stop])
    assert touched == allowed
    assert all(set(one.span.paths) <= allowed for one in tables.fitted.values())
    assert sum(edge.action == "keep" for edge in tables.edges) == 6
    assert len(tables.worths) == 6


def test_alike_modules_are_timed_once_and_unlike_ones_never_together(monkeypatch):
    timed = []

    def counting(models, batch, **_):
        timed.extend((name, one) for name, one in models.items())
        return stopwatch.latency(models, batch)

    monkeypatch.setattr(room, "latency", counting)
    one = maker(network(3), longest=1, kinds=("conv1",))
    one.make()
    blocks = [module for _, module in timed if isinstance(module, networks.CifarBlock)]
    assert len(blocks) == 5  # layer1; the first of layer2 and layer3, and the others there


class Tails(nn.Module):
    """Two remainders without parameters on the same shape: a ReLU, and a shortcut that halves the image."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.Sequential(networks.CifarBlock(4, 4, 1), networks.CifarBlock(4, 8, 2))

    def forward(self, x):
        return self.layers(self.stem(x)).mean(dim=(2, 3))


def test_what_is_left_of_unlike_blocks_has_a_price_each(monkeypatch):
    timed = []

    def recording(models, batch, **_):
        timed.extend(one for one in models.values() if type(one).__name__ == "Remainder")
        return stopwatch.latency(models, batch)

    monkeypatch.setattr(room, "latency", recording)
    torch.manual_seed(0)
    one = maker(networks.randomised(Tails()), longest=1, kinds=("conv1",))
    kept = [left for left in one.anatomy.remainders.values() if type(left).__name__ == "Remainder"]
    one.make()
    shapes = {one.anatomy.chain[path].in_shape for path in one.anatomy.remainders}
    assert shapes == {(4, 8, 8)}
    assert set(map(id, timed)) >= {id(left) for left in kept}


def test_what_is_known_is_not_measured_again(made):
    one, _ = made
    again = maker(damages=dict(one.damages), intervals=dict(one.intervals))
    again.damages["remove layer1.0"] = 7.0
    stages = []
    again.progress = lambda stage, done, total: stages.append((stage, total))
    [edge] = [edge for edge in again.make().edges if edge.action == "remove" and edge.start == 0]
    assert edge.damage == 7.0
    assert not any(stage.startswith("damage") and total for stage, total in stages)


def test_tokens_get_linear_maps():
    torch.manual_seed(0)
    tables = maker(networks.NumberedNet(8).eval(), shape=(12, 5, 4)).make()
    assert {one.kind for one in tables.fitted.values()} == {"conv1"}
    assert len(tables.fitted) == 6


def test_too_little_data_is_noted():
    torch.manual_seed(0)
    model = networks.randomised(networks.CifarResNet(2, widths=(8, 16, 32)))
    tables = maker(model, shape=(2, 3, 8, 8)).make()
    assert any("fitted on too little data" in note for note in tables.notes)


def test_the_network_stays_as_it_was(made):
    one, _ = made
    torch.testing.assert_close(one.anatomy.model.state_dict(), network().state_dict(), rtol=0, atol=0)
    assert not any("forward" in vars(part) for part in one.anatomy.model.modules())


def test_a_fitted_stand_in_can_be_built_again(made):
    _, tables = made
    for fitted in tables.fitted.values():
        build(fitted.stand_in, torch.zeros(1)).load_state_dict(fitted.module.state_dict())
