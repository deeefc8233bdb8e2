"""Blocks that are computed once more in the backward pass: the same gradients from less memory."""

import copy

import pytest
import torch
from torch import nn

import language
import networks
from shoal.batches import Batch, call
from shoal.errors import UsageError
from shoal.recover import DistillConfig, distill
from shoal.recover.recompute import recomputable_blocks, recomputing


def batch(**more):
    return Batch((), {"input_ids": language.tokens(), **more})


def backward(model, inputs, paths):
    """Gradients of a loss, and the bytes that were kept for them."""
    model.zero_grad()
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), recomputing(model, paths):
        loss = call(model, inputs).logits.square().mean()
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return gradients, sum(size for pointer, size in kept.items() if pointer not in weights)


@pytest.mark.parametrize("use_cache", [{}, {"use_cache": False}, {"use_cache": True}])
def test_gradients_are_the_same_to_the_bit_and_less_is_kept(use_cache):
    model = language.llama(4)
    inputs = batch(**use_cache)
    paths = recomputable_blocks(model, inputs)
    assert paths == [f"model.layers.{index}" for index in range(4)]
    plain, kept = backward(model, inputs, [])
    recomputed, kept_then = backward(model, inputs, paths)
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)
    if use_cache != {"use_cache": True}:  # a block that is handed a cache runs as usual
        assert kept_then < 0.6 * kept
    assert not any("forward" in vars(module) for module in model.modules())
    assert model.config.use_cache is True


def test_a_forward_that_a_block_has_of_its_own_comes_back():
    model = language.llama(2)
    layer = model.model.layers[0]
    own = layer.forward = layer.forward
    with recomputing(model, ["model.layers.0"]):
        assert layer.forward is not own
    assert layer.forward is own


def test_blocks_with_batch_norms_are_refused():
    images = Batch((torch.randn(4, 3, 8, 8),))
    with pytest.raises(UsageError, match="none of its 3 blocks may run twice in a step"):
        recomputable_blocks(networks.randomised(networks.CifarResNet(1, widths=(4, 8, 8))), images)


def test_weights_divided_over_processes_are_refused():
    with pytest.raises(UsageError, match="checkpointing runs blocks twice"):
        DistillConfig(shard=True, checkpointing=True)


def test_a_network_without_blocks_is_refused():
    with pytest.raises(UsageError, match="checkpointing recomputes whole blocks"):
        recomputable_blocks(nn.Sequential(nn.Linear(4, 3)), Batch((torch.randn(4, 4),)))


def test_a_distillation_comes_out_the_same():
    teacher = language.llama(3)
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.mul_(8 if weight.dim() == 2 else 1)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        student.model.layers[1].mlp.down_proj.weight.zero_()
    data = [{"input_ids": language.tokens(8, seed=seed)} for seed in range(3)]
    results = [
        distill(
            student, teacher, data, validation=[{"input_ids": language.tokens(8, seed=9)}], budget=10,
            config=DistillConfig(rate=3e-3, looks=2, checkpointing=checkpointing),
        ).model.state_dict()
        for checkpointing in (False, True)
    ]  # fmt: skip
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])
    assert not torch.equal(results[0]["model.norm.weight"], student.state_dict()["model.norm.weight"])
