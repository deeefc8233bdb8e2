"""A trained network that loses blocks while it learns from a teacher."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_trainer import PLAN, network, same, settings, state

import shoal
from shoal.epsilon.recipes import fine_tuning
from shoal.epsilon.trainer import EpsilonConfig, EpsilonTrainer
from shoal.errors import UsageError
from shoal.sources import Data
from shoal.sources.builtin_networks import DigitsResNet

pytestmark = pytest.mark.heavy
SHORT = replace(fine_tuning(PLAN, 4), batch_size=64)


@pytest.fixture(scope="module")
def data():
    return shoal.load_data("digits", limit=128, batch_size=64)


def tuned(data, teacher, *, folder=None, progress=None, **changes):
    config = settings(plan=SHORT, side=False, **{"epsilon": "auto", "lose": 0.34, **changes})
    extra = {} if progress is None else {"progress": progress}
    run = EpsilonTrainer(network(), data, config, folder=folder, teacher=teacher, **extra)
    run.train()
    return run


def shuffled(data: Data) -> Data:
    """The same images with the labels of others."""
    parts = tuple(replace(part, labels=part.labels.roll(1)) for part in data.parts)
    return replace(data, parts=parts)


def test_it_learns_the_answers_and_not_the_labels(data):
    teacher = network(seed=1)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    run = tuned(data, teacher.train())
    assert len(run.prunable.removed) == 3
    assert same(state(run), state(tuned(shuffled(data), teacher)))
    assert teacher.training
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    x = data.example(2).args[0]
    with torch.no_grad():
        expected, start, end = (net.eval()(x).log_softmax(1) for net in (teacher, network(), run.prunable.pruned()))
    first, last = (F.kl_div(answers, expected, log_target=True, reduction="batchmean") for answers in (start, end))
    assert last < first


def test_resumed_it_is_bitwise_the_same_and_another_teacher_is_refused(data, tmp_path):
    teacher = network(seed=1)

    def stop(stage, done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(data, teacher, folder=tmp_path, progress=stop)
    for other in (network(seed=2), None):
        with pytest.raises(UsageError, match="other settings: teacher was"):
            tuned(data, other, folder=tmp_path)
    assert same(state(tuned(data, teacher)), state(tuned(data, teacher, folder=tmp_path)))


def test_a_teacher_of_other_classes_is_refused(data):
    with pytest.raises(UsageError, match=r"shape \(2, 7\), the network with \(2, 10\)"):
        tuned(data, DigitsResNet(1, widths=(4, 6, 8), classes=7))


def test_the_recipe_has_a_low_rate_that_falls_in_the_second_half():
    config = EpsilonConfig.fine_tuning("cifar10:/data", 8, lose=0.2)
    assert (config.epsilon, config.lose, config.side, config.freeze_after) == ("auto", 0.2, False, 1)
    assert config.recipe.augmentation.flip
    rates = [config.recipe.rate.rate(epoch, 8, None) for epoch in range(8)]
    assert rates[:4] == [rates[0]] * 4
    assert rates[0] > rates[4] > rates[7] > 0
    assert EpsilonConfig.fine_tuning("digits").recipe.epochs == 10
