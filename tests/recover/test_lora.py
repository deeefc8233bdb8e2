import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import language
import networks
from serving_cases import cut
from shoal.errors import UsageError, WeightsError
from shoal.recover import DistillConfig, distill
from shoal.recover.lora import Adapters, adapted_maps, add_adapters_, check_lora, merge_adapters_, share_frozen_

needs_peft = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("peft") is None, reason="shoal[lora] is not installed"
)


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def teach(adapters, model, paths):
    """Let adapters learn something, by hand."""
    torch.manual_seed(1)
    for path in paths:
        torch.nn.init.normal_(model.get_submodule(path).lora_B.default.weight, std=0.1)


@needs_peft
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_begin_as_nothing_and_are_merged_without_a_trace(dtype):
    model = language.llama(2).to(dtype)
    model.model.embed_tokens.requires_grad_(False)
    reference, names = copy.deepcopy(model), list(model.state_dict())
    ids = language.tokens()
    adapters = add_adapters_(model, 4)
    assert torch.equal(logits(model, ids), logits(reference, ids))
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(learning) == 2 * 7 * 2
    assert all("lora_" in name for name in learning)
    teach(adapters, model, adapters.paths)
    adapted = logits(model, ids)
    assert not torch.allclose(adapted, logits(reference, ids), atol=1e-2)
    merge_adapters_(model, adapters)
    assert torch.allclose(logits(model, ids), adapted, atol=1e-5 if dtype is torch.float32 else 0.1)
    assert list(model.state_dict()) == names
    assert all(parameter.dtype is dtype for parameter in model.parameters())
    assert not any("peft" in type(module).__module__ for module in model.modules())
    assert not hasattr(model, "peft_config")
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.embed_tokens.weight"]


@needs_peft
def test_frozen_weights_lie_in_memory_once_and_merging_leaves_the_teacher_alone():
    teacher = language.llama(3).requires_grad_(False)
    before = copy.deepcopy(teacher.state_dict())
    student = copy.deepcopy(teacher)
    adapters = add_adapters_(student, 2)
    spared = share_frozen_(student, teacher)
    assert spared == sum(p.numel() * 4 for p in teacher.parameters())
    assert share_frozen_(student, teacher) == 0
    teach(adapters, student, adapters.paths)
    merge_adapters_(student, adapters)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    up = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(student.state_dict()[up], before[up])


def test_weights_that_learn_or_differ_are_not_shared():
    one, other = language.llama(1), language.llama(1)
    assert share_frozen_(one, other) == 0
    one.requires_grad_(False)
    assert share_frozen_(one, other) == 0
    other.requires_grad_(False)
    other.lm_head.weight.data = other.lm_head.weight + 1
    assert (
        share_frozen_(one, other) == sum(p.numel() * 4 for p in other.parameters()) - other.lm_head.weight.numel() * 4
    )


@needs_peft
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cut_comes_nearer_to_its_original_by_adapters_alone(dtype):
    teacher = language.llama(4)
    for parameter in teacher.parameters():
        parameter.data *= 5 if parameter.dim() > 1 else 1
    teacher = teacher.to(dtype)
    student, _ = cut(["model.layers.1", "model.layers.2#1"], teacher)
    state = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    original = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    data, validation = ([{"input_ids": language.tokens(32, seed=seed)}] for seed in (1, 2))
    config = DistillConfig(lora=8, rate=0.003, looks=2)
    result = distill(student, teacher, data, validation=validation, budget=25, config=config)
    assert result.recovery.divergence_after < 0.9 * result.recovery.divergence_before
    assert result.recovery.settings["lora"] == 8
    changed = {name for name, tensor in result.model.state_dict().items() if not torch.equal(tensor, state[name])}
    assert list(result.model.state_dict()) == list(state)
    assert changed
    assert all(".self_attn." in name or ".mlp." in name for name in changed)
    assert all(torch.equal(tensor, state[name]) for name, tensor in student.state_dict().items())
    assert all(torch.equal(tensor, original[name]) for name, tensor in teacher.state_dict().items())


@needs_peft
def test_a_run_by_adapters_resumes_from_its_folder(tmp_path):
    teacher = language.llama(3)
    student, _ = cut(["model.layers.1"], teacher)
    data, validation = ([{"input_ids": language.tokens(8, seed=seed)}] for seed in (1, 2))
    config = DistillConfig(lora=4, rate=0.01, looks=2)
    run = {"validation": validation, "budget": 6, "config": config, "folder": tmp_path}
    first = distill(student, teacher, data, **run)
    again = distill(student, teacher, data, **run)
    assert again.recovery.resumed
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    with pytest.raises(WeightsError, match=r"checkpoint of another network: .*lora_A"):
        distill(student, teacher, data, **{**run, "config": DistillConfig(lora=2, rate=0.01, looks=2)})


def test_the_output_layer_and_stand_ins_get_no_adapter():
    paths = adapted_maps(language.llama(2), ["model.layers.1"])
    assert len(paths) == 7
    assert all(path.startswith("model.layers.0.") for path in paths)
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=32))
    assert len(adapted_maps(gpt2)) == 4


@needs_peft
def test_the_maps_of_gpt2_are_transposed_and_merged_so():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=100)).eval()
    ids = language.tokens()
    adapters = add_adapters_(model, 2)
    teach(adapters, model, adapters.paths)
    adapted = logits(model, ids)
    assert torch.allclose(logits(merge_adapters_(model, adapters), ids), adapted, atol=1e-5)


def test_what_cannot_learn_so_is_refused(monkeypatch):
    with pytest.raises(UsageError, match="LoRA is for networks of transformers"):
        check_lora(networks.PreactNet(4, 1), 4)
    check_lora(networks.PreactNet(4, 1), 0)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UsageError, match="LoRA needs the package peft") as caught:
        check_lora(language.llama(1), 4)
    assert "shoal[lora]" in caught.value.hint
    for wrong in (-1, 1.5, True):
        with pytest.raises(UsageError, match="lora is"):
            DistillConfig(lora=wrong)


def test_a_configuration_without_adapters_is_written_as_before():
    assert "lora" not in DistillConfig().to_dict()
    assert DistillConfig(lora=4).to_dict()["lora"] == 4
    assert Adapters((), ()).paths == ()
