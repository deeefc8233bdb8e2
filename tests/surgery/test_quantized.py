"""Networks whose linear layers hold quantised weights are scored and cut, and their plan is applied to the original."""

import copy
import warnings

import pytest
import torch
from torch import nn

import language
from shoal import apply, compress
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import PlanError
from shoal.pipeline.goals import RemoveBlocks
from shoal.plan import Replace, Replacement
from shoal.surgery import retargeted


class Int8Linear(nn.Module):
    """A linear layer of 8-bit weights with a scale for each output, as quantisation libraries have theirs."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("qweight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x):
        return nn.functional.linear(x, self.qweight.to(x.dtype) * self.scale.to(x.dtype))


def by_hand(model):
    quantized = copy.deepcopy(model)
    for layer in quantized.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, nn.Linear):
                    setattr(part, name, Int8Linear(linear))
    return quantized


def by_torch(model):
    quantize = getattr(getattr(torch.ao, "quantization", None), "quantize_dynamic", None)
    if quantize is None or "none" in torch.backends.quantized.supported_engines[-1:]:
        pytest.skip("this torch has no dynamic quantisation")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)


def model():
    made = language.llama(4).to(torch.float32)
    with torch.no_grad():
        for index, layer in enumerate(made.model.layers):
            for weight in layer.parameters():
                weight.mul_(6 if weight.dim() == 2 and index != 2 else 1)
    return made.eval()


def data():
    return [{"input_ids": language.tokens(4, seed=seed), "use_cache": False} for seed in range(2)]


@pytest.mark.parametrize("quantize", [by_hand, by_torch])
def test_a_quantized_network_is_scored_and_its_plan_applied_to_the_original(quantize):
    original = model()
    quantized = quantize(original)
    assert [row.path for row in analyze(quantized, Batch((), data()[0])).chain] == [
        f"model.layers.{index}" for index in range(4)
    ]
    result = compress(quantized, data(), RemoveBlocks(1))
    assert result.record.removed == ["model.layers.2"]
    with pytest.raises(PlanError, match="made for another network") as refused:
        apply(original.to(torch.bfloat16), result.plan)
    assert "--any-weights" in str(refused.value.hint)
    cut = apply(original, result.plan, any_weights=True)
    expected = copy.deepcopy(original)
    del expected.model.layers[2]
    expected.config.num_hidden_layers = 3
    for index, layer in enumerate(expected.model.layers):
        layer.self_attn.layer_idx = index
    with torch.no_grad():
        assert torch.equal(cut(**data()[0]).logits, expected(**data()[0]).logits)


def test_the_blocks_must_be_the_same_all_the_same():
    result = compress(by_hand(model()), data(), RemoveBlocks(1))
    with pytest.raises(PlanError, match="3 blocks were traced, expected 4"):
        apply(language.llama(3), result.plan, any_weights=True)


def test_a_plan_with_fitted_weights_belongs_to_its_network():
    plan = compress(by_hand(model()), data(), RemoveBlocks(1)).plan
    stand_in = Replacement(kind="linear", layout="channels_last", in_channels=32, out_channels=32)
    fitted = plan.model_copy(update={"actions": [Replace(paths=["model.layers.1"], stand_in=stand_in)]})
    with pytest.raises(PlanError, match="weights that were fitted or folded"):
        retargeted(fitted, model())


def test_a_retargeted_plan_is_one_of_the_network():
    plan = retargeted(compress(by_hand(model()), data(), RemoveBlocks(1)).plan, model().to(torch.bfloat16))
    cut = apply(model().to(torch.bfloat16), plan)
    assert cut(**data()[0]).logits.dtype is torch.bfloat16
