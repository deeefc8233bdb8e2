"""shoal.train: what `shoal train` does, from Python."""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_trainer import PLAN, network

import shoal
from shoal.epsilon import EpsilonConfig
from shoal.epsilon.recipes import recipe
from shoal.errors import FolderError, UsageError

PAGE = Path(__file__).parents[2] / "docs" / "epsilon.md"


@pytest.fixture(scope="module")
def data():
    return shoal.load_data("digits", limit=128, batch_size=64)


def same(first, second):
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_page_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [snippet] = [text for text in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
                 if "shoal.train(" in text]  # fmt: skip
    scope = {}
    exec(snippet, scope)
    result = scope["result"]
    assert result.plan.removed
    assert result.record.settled.certificate.verdict == "identical"
    assert result.record.command == "shoal.train(...)"
    x, _ = next(iter(scope["data"].test()))
    with torch.no_grad():
        assert torch.equal(scope["shallow"](x), result.model(x))


def test_the_model_and_the_random_numbers_are_left_as_they_were_and_a_finished_run_is_resumed(data, tmp_path):
    model = network().train()
    before, draws, stages = copy.deepcopy(model.state_dict()), torch.get_rng_state(), []
    config = EpsilonConfig(PLAN, 1.6, freeze_after=2)

    def train():
        return shoal.train(
            model,
            data,
            config=config,
            folder=tmp_path / "new" / "run",
            callbacks=lambda *now: stages.append(now[0]),
        )

    with torch.inference_mode():
        first = train()
    assert same(model.state_dict(), before)
    assert model.training
    assert torch.equal(torch.get_rng_state(), draws)
    assert first.record.lost
    assert stages[-1] == "measuring on test"
    resumed = train()
    assert same(first.model.state_dict(), resumed.model.state_dict())
    assert resumed.record.rows == first.record.rows


def test_a_configuration_by_recipe():
    assert EpsilonConfig.by_recipe("digits") == EpsilonConfig(recipe("digits"), 2.2, freeze_after=5)
    assert EpsilonConfig.by_recipe("npz:mine.npz").recipe == recipe("cifar10")
    assert EpsilonConfig.by_recipe("imagefolder:x").freeze_after == 3
    config = EpsilonConfig.by_recipe("svhn", epochs=7, epsilon=1.0, freeze_after=None, seed=3)
    assert (config.recipe.epochs, config.epsilon, config.freeze_after, config.seed) == (7, 1.0, None, 3)
    assert config.recipe.batch_size == recipe("svhn").batch_size


@pytest.mark.parametrize(
    ("data", "config", "message"),
    [
        ([torch.zeros(2, 1, 8, 8)], None, "data is a list, expected a Data"),
        ("digits", {"epochs": 2}, "config is a dict, expected an EpsilonConfig"),
    ],
)
def test_what_is_of_another_kind_is_refused_before_a_folder_is_made(data, config, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        shoal.train(network(), data, config=config, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_made_is_refused(data, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FolderError, match="cannot use"):
        shoal.train(network(), data, folder=tmp_path / "file" / "run")
    result = shoal.train(network(), data, config=EpsilonConfig(replace(PLAN, epochs=1), 1.6))
    with pytest.raises(FolderError, match=r"cannot use .* as the output folder"):
        result.save(tmp_path / "file", data.example(2))
