import copy
import errno
import json
from dataclasses import replace

import pytest
import torch
from test_sites import Scaled, net
from torch import nn

from shoal.epsilon.recipes import DecayPlan, RatePlan, recipe
from shoal.epsilon.trainer import EpsilonConfig, EpsilonTrainer, with_overrides
from shoal.errors import (
    DataError,
    FolderError,
    ModelRaisedError,
    NonFiniteError,
    SurgeryError,
    UsageError,
    WeightsError,
)
from shoal.files import tensors as tensor_writing
from shoal.sources import load_data
from shoal.sources.builtin_networks import DigitsResNet

pytestmark = pytest.mark.heavy

PLAN = replace(
    recipe("digits"),
    epochs=4,
    batch_size=64,
    rate=RatePlan(0.1),
    decay=DecayPlan(5e-3),
    evaluate_every=2,
    freeze_after=2,
)


@pytest.fixture(scope="module")
def data():
    return load_data("digits", limit=128, batch_size=64)


def network(depth=3, seed=0, dropout=False):
    torch.manual_seed(seed)
    model = DigitsResNet(depth, widths=(4, 6, 8))
    if dropout:
        model.head = nn.Sequential(nn.Dropout(0.3), model.head)
    return model


def settings(epsilon=1.6, plan=PLAN, **changes):
    return EpsilonConfig(plan, epsilon, **{"freeze_after": plan.freeze_after, **changes})


def trained(data, *, model=None, folder=None, **changes):
    run = EpsilonTrainer(model or network(), data, settings(**changes), folder=folder)
    run.train()
    return run


def state(run):
    return {**run.prunable.tensors(), **run.optimizer.tensors()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_blocks_under_epsilon_are_taken_out_with_their_momentum(data):
    run = trained(data)
    lost = list(run.prunable.removed)
    assert lost
    assert run.rows[-1].epoch == 4
    assert [path for row in run.rows for path in row.taken_out] == lost
    assert not [name for name in run.optimizer.tensors() if any(f"{path}.conv2" in name for path in lost)]
    assert len(run.monitor.gates) == len(run.prunable.alive)
    for row in run.rows:
        assert set(row.taken_out) <= set(row.closed)
        assert row.alive == 9 - sum(len(before.taken_out) for before in run.rows[: row.epoch - 1])


def test_a_block_goes_after_so_many_closed_epochs_and_not_before(data):
    run = trained(data, epsilon=1e6)
    assert [len(row.taken_out) for row in run.rows] == [0, 9, 0, 0]
    patient = trained(data, epsilon=1e6, freeze_after=9)
    assert [len(row.taken_out) for row in patient.rows] == [0, 0, 0, 9], "closed ones go at the end"


def test_the_faithful_mode_waits_for_the_weights(data):
    run = trained(data, epsilon=1e6, freeze_after=None)
    assert [len(row.taken_out) for row in run.rows] == [0, 0, 0, 9]
    starving = replace(PLAN, epochs=30, decay=DecayPlan(0.2), evaluate_every=99)
    early = trained(data, model=network(depth=1), epsilon=1e6, freeze_after=None, plan=starving)
    gone = [row.epoch for row in early.rows for _ in row.taken_out]
    assert len(gone) == 3
    assert 10 < min(gone) <= max(gone) < 30, "halving takes some four steps here, a thousandth some forty"
    for path, block in early.prunable.removed.items():
        assert early.last_weight(path) <= 1e-3 * early.weights_before[path]
        assert torch.count_nonzero(block.conv2.weight)


def test_closed_blocks_decay_and_learn_nothing(data):
    model = network()
    run = trained(data, model=model, epsilon=1e6, side=False)
    path = "stages.1.1"
    before = model.get_submodule(path).conv2.weight
    after = run.prunable.removed[path].conv2.weight
    ratio = (after / before).flatten()
    assert torch.allclose(ratio, ratio[0].expand_as(ratio), rtol=1e-3)
    assert ratio[0] < 1


def test_epsilon_zero_trains_the_plain_network(data):
    run = trained(data, epsilon=0.0)
    assert run.gates == []
    assert run.rows[-1].shares == {}
    assert run.rows[-1].loss < run.rows[0].loss


def test_without_openings_gates_change_nothing(data):
    plain, gated = trained(data, epsilon=0.0), trained(data, epsilon=1e-9)
    assert same(plain.prunable.tensors(), gated.prunable.tensors())


def test_the_model_and_the_random_numbers_are_left_alone(data):
    model = network(dropout=True)
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    trained(data, model=model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_resumed_it_is_bitwise_as_without_interruption(data, tmp_path, stop_after):
    model = network(dropout=True)
    whole = trained(data, model=model)

    def stop(stage, done, total):
        if done == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EpsilonTrainer(model, data, settings(), folder=tmp_path, progress=stop).train()
    resumed = EpsilonTrainer(model, data, settings(), folder=tmp_path)
    assert (resumed.resumed, resumed.state.epoch) == (True, stop_after)
    resumed.train()
    assert same(state(whole), state(resumed))
    assert [row.model_copy(update={"seconds": 0.0}) for row in resumed.rows] == [
        row.model_copy(update={"seconds": 0.0}) for row in whole.rows
    ]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]


def test_interrupted_between_two_checkpoints_it_goes_back_to_the_last(data, tmp_path):
    def stop(stage, done, total):
        if done == 3:
            raise KeyboardInterrupt

    plan = settings(checkpoint_every=2)
    with pytest.raises(KeyboardInterrupt):
        EpsilonTrainer(network(), data, plan, folder=tmp_path, progress=stop).train()
    run = EpsilonTrainer(network(), data, plan, folder=tmp_path)
    assert run.state.epoch == 2
    run.train()
    assert same(state(run), state(trained(data, checkpoint_every=2)))


def test_a_checkpoint_of_another_network_or_of_other_settings_is_refused(data, tmp_path):
    trained(data, folder=tmp_path)
    with pytest.raises(WeightsError, match="another network"):
        EpsilonTrainer(network(depth=2), data, settings(), folder=tmp_path)
    with pytest.raises(UsageError, match=r"other settings: epsilon was 1\.6"):
        EpsilonTrainer(network(), data, settings(epsilon=2.0), folder=tmp_path)


def test_nan_stops_the_run_and_the_last_good_checkpoint_is_kept(data, tmp_path):
    run = EpsilonTrainer(network(), data, settings(), folder=tmp_path)

    def poison(stage, done, total):
        if done == 2:
            with torch.no_grad():
                run.prunable.model.head.weight.fill_(float("nan"))

    run.on_progress = poison
    with pytest.raises(NonFiniteError, match=r"NaN or Inf in epoch 3; the checkpoint of epoch 2 is kept"):
        run.train()
    assert EpsilonTrainer(network(), data, settings(), folder=tmp_path).state.epoch == 2


class Tired(DigitsResNet):
    """Raises at a call in training mode; copies count on their own."""

    calls = 0

    def forward(self, x):
        self.calls += self.training
        if self.calls == 6:
            raise ZeroDivisionError("enough")
        return super().forward(x)


def test_a_network_that_raises_in_training_is_named_and_the_users_own_is_as_before(data, tmp_path):
    model = Tired(1, widths=(4, 6, 8)).train()
    drawn = torch.get_rng_state()
    with pytest.raises(ModelRaisedError, match="raised ZeroDivisionError on an input of shape"):
        EpsilonTrainer(model, data, settings(), folder=tmp_path).train()
    assert (model.calls, model.training) == (0, True)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert (tmp_path / "checkpoint.safetensors").exists(), "four steps an epoch: the first one was finished"


def test_all_processes_stop_where_the_loss_of_one_is_nan(data, monkeypatch):
    run = EpsilonTrainer(network(), data, settings())
    monkeypatch.setattr(run.engine, "summed", lambda values: values * float("nan"))
    with pytest.raises(NonFiniteError, match="epoch 1; there is no checkpoint yet"):
        run.train()


def test_a_whole_stage_may_be_lost_down_to_its_shortcut(data):
    run = trained(data, epsilon=1e6)
    assert not run.prunable.alive
    plain = run.prunable.pruned().eval()
    x = data.example(2).args[0]
    assert plain(x).shape == (2, 10)
    assert [type(stage[0]).__name__ for stage in plain.stages] == ["Identity", "Sequential", "Sequential"]


def test_a_full_disk_keeps_the_checkpoint_before(data, tmp_path, monkeypatch):
    save, calls = tensor_writing.save_file, []

    def fills_up(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(*args, **kwargs)

    monkeypatch.setattr(tensor_writing, "save_file", fills_up)
    with pytest.raises(FolderError, match="No space left"):
        EpsilonTrainer(network(), data, settings(), folder=tmp_path).train()
    run = EpsilonTrainer(network(), data, settings(), folder=tmp_path)
    assert run.state.epoch == 2
    run.train()
    assert same(state(run), state(trained(data)))


def test_a_loss_of_blocks_sends_the_rate_back(data):
    plan = replace(PLAN, epochs=6, rate=RatePlan(0.1, falls=((1, 0.01),), after_loss=((2, 0.02),)))
    run = trained(data, plan=plan, epsilon=1e6)
    assert run.rows[0].lost
    assert [row.rate for row in run.rows] == [0.1, 0.1, 0.1, 0.02, 0.02, 0.02]


def test_in_the_settling_epochs_gates_are_open_and_nothing_is_lost(data):
    plan = replace(PLAN, epochs=5, rate=RatePlan(0.1, settle=2))
    run = trained(data, plan=plan, freeze_after=9)
    assert [row.epsilon for row in run.rows] == [1.6, 1.6, 1.6, 0.0, 0.0]
    assert run.rows[2].taken_out
    assert not run.rows[3].taken_out + run.rows[4].taken_out
    assert set(run.rows[3].shares.values()) <= {1.0}


def test_epsilon_may_be_held_back(data):
    run = trained(data, epsilon=1e6, hold=2)
    assert [len(row.closed) for row in run.rows] == [0, 0, 9, 9]


def test_the_error_looked_at_is_that_of_the_network_that_would_come_out(data):
    run = trained(data, epsilon=1e6)
    assert run.rows[1].test_error is not None
    assert run.rows[0].test_error is None
    right = total = 0
    plain = run.prunable.pruned().eval()
    with torch.no_grad():
        for x, y in data.test():
            right, total = right + int((plain(x).argmax(1) == y).sum()), total + len(y)
    assert run.rows[-1].test_error == pytest.approx(1 - right / total)


def test_mixed_precision_and_channels_last_run(data):
    run = trained(data, precision="bf16", channels_last=True, plan=replace(PLAN, epochs=2))
    assert run.rows[-1].loss < run.rows[0].loss
    assert all(tensor.dtype == torch.float32 for tensor in run.optimizer.tensors().values())


def test_what_is_refused(data):
    with pytest.raises(UsageError, match="expected fp32 or bf16"):
        settings(precision="fp8")
    with pytest.raises(UsageError, match="freeze_after is 0"):
        settings(freeze_after=0)
    with pytest.raises(UsageError, match="0 epochs"):
        settings(plan=replace(PLAN, epochs=0))
    with pytest.raises(UsageError, match="Train without --compile"):
        EpsilonTrainer(net(Scaled(), Scaled()), data, settings(compile=True))
    with pytest.raises(SurgeryError, match="no block of this network can be gated"):
        EpsilonTrainer(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data, settings())


def test_overrides_leave_what_was_not_given():
    changed = with_overrides(PLAN, epochs=9, batch_size=None)
    assert (changed.epochs, changed.batch_size) == (9, PLAN.batch_size)


def test_labels_that_the_network_does_not_have_are_named(data):
    model = network()
    model.head = nn.Linear(model.head.in_features, 3)
    with pytest.raises(DataError, match=r"label \d does not fit a model with 3 classes"):
        trained(data, model=model)
