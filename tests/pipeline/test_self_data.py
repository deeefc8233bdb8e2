import copy

import pytest
import torch

import language
import networks
import stopwatch
from shoal import CompressConfig, RecoveryConfig, RemoveBlocks, compress
from shoal.batches import Batch
from shoal.errors import DataError, ModelRaisedError, UsageError
from shoal.pipeline.self_data import check_self_data, write_self_data
from shoal.recover import DistillConfig
from shoal.training.loaders import MixedLoader


def ids(count=3, length=16, seed=0):
    return Batch(kwargs={"input_ids": language.tokens(count, length, seed=seed)})


def test_sequences_begin_as_the_data_and_are_the_same_for_the_same_seed():
    model, batch = language.llama(1), ids()
    drawn = torch.get_rng_state()
    written = write_self_data(model, [batch], 7, seed=5)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert [batch.size for batch in written] == [3, 3, 1]
    tokens = torch.cat([batch.kwargs["input_ids"] for batch in written])
    assert tokens.shape == (7, 16)
    assert tokens.dtype == torch.int64
    prompts = batch.kwargs["input_ids"][:, :2]
    assert torch.equal(tokens[:, :2], torch.cat([prompts, prompts, prompts[:1]]))
    assert not torch.equal(tokens[:3], tokens[3:6])
    again = torch.cat([batch.kwargs["input_ids"] for batch in write_self_data(model, [batch], 7, seed=5)])
    assert torch.equal(tokens, again)
    other = torch.cat([batch.kwargs["input_ids"] for batch in write_self_data(model, [batch], 7, seed=6)])
    assert not torch.equal(tokens, other)


def test_sampling_is_that_of_the_network_whatever_its_own_settings_say():
    model, batch = language.llama(1), ids(32, 33)
    plain = write_self_data(model, [batch], 32, seed=5)
    settings = model.generation_config
    settings.do_sample, settings.top_k, settings.temperature, settings.repetition_penalty = True, 1, 0.1, 9.0
    settings.eos_token_id, settings.pad_token_id, settings.max_length = list(range(2, 64)), 1, 5
    before, mode = copy.deepcopy(settings.to_dict()), model.train()
    written = write_self_data(mode, [batch], 32, seed=5)
    assert torch.equal(written[0].kwargs["input_ids"], plain[0].kwargs["input_ids"])
    assert model.generation_config is settings
    assert settings.to_dict() == before
    assert all(module.training for module in model.modules())
    # The frequencies of tokens after one are the probabilities the network gives them.
    prompt = Batch(kwargs={"input_ids": torch.full((4000, 2), 7)})
    (drawn,) = write_self_data(model.eval(), [prompt], 4000, seed=1)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[7]])).logits[0, -1].softmax(0)
    seen = drawn.kwargs["input_ids"][:, 1].bincount(minlength=128) / 4000
    assert (seen - expected).abs().max() < 5 * (expected.max() / 4000).sqrt()
    assert (seen > 0).sum() > 100


def test_the_form_is_that_of_the_data_and_padding_is_no_prompt():
    tokens = language.tokens(3, 16)
    mask = torch.ones_like(tokens)
    mask[0, :4] = 0
    mask[1, 9:] = 0
    batch = Batch(kwargs={"input_ids": tokens, "attention_mask": mask})
    first, second = write_self_data(language.llama(1), [batch], 3, seed=0)
    assert list(first.kwargs) == ["input_ids", "attention_mask"]
    assert torch.equal(first.kwargs["input_ids"][:, :2], tokens[1:, :2])
    assert first.kwargs["attention_mask"].shape == (2, 16)
    assert first.kwargs["attention_mask"].all()
    assert second.size == 1
    (positional,) = write_self_data(language.llama(1), [Batch((tokens,))], 3, seed=0)
    assert positional.args[0].shape == (3, 16)
    assert not positional.kwargs
    mask[:] = 0
    with pytest.raises(DataError, match="no calibration sequence begins"):
        write_self_data(language.llama(1), [batch], 3, seed=0)


def test_what_cannot_write_is_refused():
    from transformers import LlamaModel, T5Config, T5ForConditionalGeneration

    model = language.llama(1)
    small = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 128}
    for other in (networks.CifarResNet(), LlamaModel(model.config), T5ForConditionalGeneration(T5Config(**small))):
        with pytest.raises(UsageError, match="cannot write its own data"):
            check_self_data(other, ids())
    tokens = language.tokens()
    for wrong in (
        Batch((torch.rand(2, 12),)),
        Batch(kwargs={"inputs_embeds": torch.rand(2, 12, 32)}),
        Batch(kwargs={"input_ids": tokens, "position_ids": tokens}),
        Batch((tokens[:, :1],)),
    ):
        with pytest.raises(DataError):
            check_self_data(model, wrong)
    with pytest.raises(UsageError, match="both say"):
        RecoveryConfig(2, unlabelled=[tokens], self_data=2)
    with pytest.raises(UsageError, match="self_data"):
        RecoveryConfig(2, self_data=-1)


def test_what_generate_raises_is_a_readable_error():
    model = language.llama(1)
    own = model.generation_config
    model.generate = lambda *_, **__: 1 / 0
    with pytest.raises(ModelRaisedError, match="`generate` raised ZeroDivisionError"):
        write_self_data(model, [ids()], 3, seed=0)
    assert model.generation_config is own


def test_a_cut_network_learns_from_what_the_original_wrote(monkeypatch):
    model, learned, written = language.llama(2), [], []
    next_batch, write = MixedLoader.next_batch, write_self_data

    def noted(loader, step):
        batch = next_batch(loader, step)
        learned.append(batch.kwargs["input_ids"].tolist())
        return batch

    def kept(*arguments):
        written.extend(write(*arguments))
        return written

    monkeypatch.setattr("shoal.pipeline.outcome.latency_beside", stopwatch.beside)
    monkeypatch.setattr(MixedLoader, "next_batch", noted)
    monkeypatch.setattr("shoal.pipeline.recovery.write_self_data", kept)
    data = {"validation": [ids(4, seed=1)], "test": [ids(4, seed=2)]}
    recovery = RecoveryConfig(2, DistillConfig(rate=1e-3, seed=3), self_data=3)
    result = compress(model, [ids()], RemoveBlocks(1), **data, recovery=recovery, config=CompressConfig(images=3))
    assert result.record.recovery.steps == 2
    assert [batch.size for batch in written] == [3]
    (again,) = write(model, [ids()], 3, 3)
    tokens = again.kwargs["input_ids"].tolist()
    assert [batch == tokens for batch in learned] == [False, True]
