"""Gates on a network that other code trains: its own loop, the Trainer of transformers, Lightning."""

import re
from pathlib import Path

import pytest
import torch

import networks
from shoal.epsilon import gates_of
from shoal.epsilon.gated_training import GatedTraining
from shoal.errors import SurgeryError, UsageError

PAGE = Path(__file__).parents[2] / "docs" / "cookbook-training.md"


def snippet(number):
    """A block of Python of the section on vanishing blocks, with an epsilon that shuts every gate."""
    section = PAGE.read_text(encoding="utf-8").split("## Blocks that vanish in your Trainer")[1]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)[number].replace("epsilon=2.5", "epsilon=1e6")


def network():
    torch.manual_seed(0)
    return networks.PreactNet(width=4, depth=3)


def images(seed=0):
    return torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def train(training, epochs):
    optimizer = torch.optim.SGD(training.model.parameters(), lr=0.01)
    shut = []
    for _ in range(epochs):
        for seed in range(2):
            loss = training.model(images(seed)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            training.step()
        shut.append(training.end_epoch())
    return shut


def test_blocks_whose_gates_stay_closed_are_shut_and_leave_the_pruned_network():
    model = network()
    names = list(model.state_dict())
    training = GatedTraining(model, images(), epsilon=1e6, freeze_after=2)
    assert train(training, 3) == [[], ["blocks.0", "blocks.1", "blocks.2"], []]
    assert training.shut == {"blocks.0": 2, "blocks.1": 2, "blocks.2": 2}
    assert list(model.state_dict()) == names
    pruned = training.pruned()
    assert not any(name.startswith("blocks") for name in pruned.state_dict())
    assert gates_of(pruned) == []
    assert not pruned.training
    model.eval()
    with torch.no_grad():
        assert torch.equal(pruned(images(5)), model(images(5)))
    assert len(gates_of(model)) == 3, "the network that is trained keeps its gates"


def test_gates_that_open_once_stay():
    training = GatedTraining(network(), images(), epsilon=1e-6)
    assert train(training, 2) == [[], []]
    pruned = training.pruned()
    assert len(pruned.state_dict()) == len(network().state_dict())


def test_only_the_quiet_block_goes():
    model = network()
    torch.nn.init.zeros_(model.blocks[1].conv2.weight)
    torch.nn.init.zeros_(model.blocks[1].conv2.bias)
    training = GatedTraining(model, images(), epsilon=1e-3)
    assert train(training, 1) == [["blocks.1"]]
    assert not any(name.startswith("blocks.1") for name in training.pruned().state_dict())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epsilon": -1}, "epsilon is -1"),
        ({"freeze_after": 0}, "freeze_after"),
        ({"freeze_after": 1.5}, "freeze_after"),
    ],
)
def test_numbers_out_of_range_are_refused_and_nothing_is_changed(changes, words):
    model = network()
    with pytest.raises(UsageError, match=words):
        GatedTraining(model, images(), **changes)
    assert gates_of(model) == []


def test_a_callback_before_training_says_so():
    pytest.importorskip("transformers")
    from shoal.epsilon.transformers_callback import EpsilonTrainerCallback

    with pytest.raises(UsageError, match="no training has begun"):
        EpsilonTrainerCallback({}).pruned()


def test_gates_are_not_put_on_twice():
    model = network()
    GatedTraining(model, images())
    with pytest.raises(UsageError, match="has gates already"):
        GatedTraining(model, images())


def test_a_network_without_blocks_is_refused():
    with pytest.raises(SurgeryError, match="no block of this network can be gated"):
        GatedTraining(networks.PlainNet(), images())


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_trainer_of_transformers(accumulation, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, num_labels=3,
        max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    ids = torch.randint(0, 30, (16, 6), generator=torch.Generator().manual_seed(0))
    rows = [
        {"input_ids": row, "attention_mask": torch.ones(6, dtype=torch.long), "labels": int(row[0]) % 3} for row in ids
    ]
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=2, per_device_train_batch_size=4, gradient_accumulation_steps=accumulation,
        save_strategy="no", logging_steps=1, report_to=[], use_cpu=True,
    )  # fmt: skip
    example = {"input_ids": ids[:2], "attention_mask": torch.ones_like(ids[:2])}
    scope = {"model": model, "arguments": arguments, "tokenised": rows, "example": example}
    exec(snippet(0), scope)
    callback, pruned = scope["callback"], scope["network"]
    assert len(callback.training.shut) == 3
    assert callback.training.monitor.steps == 0
    left = [name for name in pruned.state_dict() if name.startswith("bert.encoder.layer.0.attention")]
    assert all("LayerNorm" in name for name in left), left  # a norm behind an addition stays
    with torch.no_grad():
        model.eval()
        torch.testing.assert_close(pruned(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.mark.slow
def test_lightning(tmp_path, monkeypatch):
    lightning = pytest.importorskip("lightning.pytorch")

    class Task(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = network()

        def training_step(self, batch, _):
            return self.model(batch[0]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images()), batch_size=3)
    scope = {"task": Task(), "loader": loader, "images": images()}
    monkeypatch.chdir(tmp_path)
    exec(snippet(1), scope)
    assert len(scope["callback"].training.shut) == 3
    assert not any(name.startswith("blocks") for name in scope["network"].state_dict())
