import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import dissect
from shoal.errors import ModelRaisedError, NonFiniteError
from shoal.plan import Replace
from shoal.replace import Wanted, fit_all, line_of, recalibrate_, recording, refit_, spans_of
from shoal.surgery import remove_blocks_
from shoal.surgery.replace import replace_spans_


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def data(*shape, count=3):
    return [Batch((randn(*shape, seed=seed),)) for seed in range(count)]


def teacher(batches):
    torch.manual_seed(0)
    return dissect(networks.randomised(networks.CifarResNet(2, widths=(4, 8, 16))), batches[0].take(2))


def fitted(anatomy, batches, start, stop, kind="conv3", rank=None):
    [span] = [one for one in spans_of(anatomy, line_of(anatomy), 6) if (one.start, one.stop) == (start, stop)]
    return fit_all(anatomy, batches, [Wanted(span, kind, rank)])[0]


def student(anatomy, batches, one, removed=()):
    """The original with a stand-in in it, and some blocks gone."""
    own = dissect(copy.deepcopy(anatomy.model), batches[0].take(2))
    actions = [Replace(paths=list(one.span.paths), stand_in=one.stand_in)]
    replace_spans_(own, actions, {one.span.paths[0]: copy.deepcopy(one.module)})
    return remove_blocks_(own, list(removed)).eval()


def error(anatomy, model, one, batches):
    """Mean squared error of the stand-in's sum, on what really enters it."""
    module, total = model.get_submodule(one.span.paths[0]), 0.0
    caught = []
    handle = module.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    with torch.no_grad(), recording(anatomy, [one.span.paths[-1]]) as seen:
        for batch in batches:
            anatomy.model(*batch.args)
            model(*batch.args)
            total += float((module[0](caught[-1]) - seen.sums[one.span.paths[-1]]).square().mean())
    handle.remove()
    return total


@pytest.mark.parametrize("place", [(2, 4), (3, 4)])
def test_a_refit_makes_good_what_an_upstream_removal_did(place):
    batches = data(16, 3, 8, 8)
    anatomy = teacher(batches)
    one = fitted(anatomy, batches, *place)
    model = student(anatomy, batches, one, ["layer1.0", "layer1.1"])
    before, others = error(anatomy, model, one, batches), copy.deepcopy(model.state_dict())
    refit_(anatomy, model, one, batches)
    assert error(anatomy, model, one, batches) < 0.9 * before
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, others[name])}
    assert changed == {f"{one.span.paths[0]}.0.weight", f"{one.span.paths[0]}.0.bias"}


def test_where_nothing_was_changed_upstream_the_fit_stands():
    batches = data(16, 3, 8, 8)
    anatomy = teacher(batches)
    one = fitted(anatomy, batches, 1, 3)
    model = student(anatomy, batches, one)
    refit_(anatomy, model, one, batches)
    torch.testing.assert_close(model.layer1[1].state_dict(), one.module.state_dict(), rtol=1e-4, atol=1e-4)


def test_tokens():
    torch.manual_seed(0)
    batches = data(16, 6, 4)
    anatomy = dissect(networks.NumberedNet(8).eval(), batches[0].take(2))
    one = fitted(anatomy, batches, 1, 3, "conv1")
    model = student(anatomy, batches, one, ["block1"])
    before = error(anatomy, model, one, batches)
    refit_(anatomy, model, one, batches)
    assert error(anatomy, model, one, batches) < before


def test_a_low_rank_stand_in_is_refitted_within_its_rank():
    batches = data(16, 3, 8, 8)
    anatomy = teacher(batches)
    one = fitted(anatomy, batches, 1, 2, "lowrank3", 2)
    model = student(anatomy, batches, one, ["layer1.0"])

    def error_now():
        module, total, caught = model.layer1[1], 0.0, []
        handle = module.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        with torch.no_grad(), recording(anatomy, ["layer1.1"]) as seen:
            for batch in batches:
                anatomy.model(*batch.args)
                model(*batch.args)
                made = caught[-1] + module.branch(caught[-1])
                total += float((made - seen.sums["layer1.1"]).square().mean())
        handle.remove()
        return total

    before = error_now()
    refit_(anatomy, model, one, batches)
    assert error_now() < before
    assert model.layer1[1].branch[0].out_channels == 2


def test_neither_teacher_nor_data_nor_modes_change():
    batches = data(8, 3, 8, 8)
    anatomy = teacher(batches)
    one = fitted(anatomy, batches, 1, 3)
    model = student(anatomy, batches, one).train()
    before, given = copy.deepcopy(anatomy.model.state_dict()), [batch.args[0].clone() for batch in batches]
    refit_(anatomy, model, one, batches)
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
    anatomy = dissect(networks.randomised(Normalising(2, widths=(4, 8, 16))), batches[0].cloned())
    one = fitted(anatomy, batches, 1, 3)
    model = student(anatomy, [batches[0].cloned()], one)
    refit_(anatomy, model, one, batches)
    assert all(torch.equal(batch.args[0], image) for batch, image in zip(batches, given, strict=True))


def test_nan_is_refused():
    batches = data(8, 3, 8, 8)
    anatomy = teacher(batches)
    one = fitted(anatomy, batches, 1, 3)
    model = student(anatomy, batches, one)
    batches[0].args[0][:] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN or Inf"):
        refit_(anatomy, model, one, batches)


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(3, momentum=0.3)
        self.free = nn.BatchNorm2d(3, track_running_stats=False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return F.relu(self.free(self.bn(x)))


def test_recalibration_takes_the_statistics_of_the_data():
    model = Normed()
    model.bn.eval()
    with torch.no_grad():
        model.bn.weight.fill_(2.0)
    x = 3 * randn(16, 3, 5, 5) + 1
    assert recalibrate_(model, [Batch((x,))]) is model
    torch.testing.assert_close(model.bn.running_mean, x.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(model.bn.running_var, x.var(dim=(0, 2, 3)))
    assert model.bn.momentum == 0.3
    assert model.training
    assert not model.bn.training
    assert model.bn.weight.tolist() == [2.0] * 3


def test_recalibration_weighs_mini_batches_alike_and_forgets_what_was():
    model = Normed()
    batches = data(16, 3, 5, 5)
    expected = torch.cat([batch.args[0] for batch in batches]).mean(dim=(0, 2, 3))
    for _ in range(2):
        recalibrate_(model, batches)
        torch.testing.assert_close(model.bn.running_mean, expected)


def test_recalibration_gives_momentum_and_mode_back_after_an_error():
    model = Normed()
    with pytest.raises(ModelRaisedError):
        recalibrate_(model, [Batch((randn(2, 7, 5, 5),))])
    assert model.bn.momentum == 0.3
    assert model.bn.training
