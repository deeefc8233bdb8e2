"""Spans whose first block takes over what the others did, by the weights of its last linear layer alone."""

import copy

import pytest
import torch
from torch import nn

import halves
import language
from shoal import Budget, CompressConfig, apply, compress, load
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import SurgeryError
from shoal.plan import Plan, Remove, Replace, Replacement
from shoal.regress import Moments
from shoal.replace import build_replacement, build_segments, find_spans, fit_folded, folded_specs, refit_
from shoal.replace.folded import is_better, solve_update
from shoal.surgery import input_specs, remove_blocks_, signature_of
from shoal.surgery.replace import replace_spans_


class Mlp(nn.Module):
    """x + W relu(V norm(x))."""

    def __init__(self, width, hidden, *, bias=False):
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.Linear(hidden, width, bias=bias),
        )

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


class Net(nn.Module):
    def __init__(self, blocks=4, width=6, hidden=10, *, bias=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(4, width)
        self.blocks = nn.ModuleList(Mlp(width, hidden, bias=bias) for _ in range(blocks))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def fitted(model, count=64, longest=3):
    batches = [Batch((torch.randn(count, 5, 4, generator=torch.Generator().manual_seed(seed)),)) for seed in range(2)]
    graph = analyze(model.eval(), batches[0].take(2))
    chain = build_segments(graph)
    specs = folded_specs(graph, chain, find_spans(graph, chain, longest))
    return graph, batches, {fold.span.name: fold for fold in fit_folded(graph, batches, specs)}


def stream(model, upto, x):
    x = model.embed(x)
    for block in model.blocks[:upto]:
        x = block(x)
    return x


@pytest.mark.parametrize("bias", [False, True])
def test_what_a_linear_map_can_do_is_done_exactly(bias):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(200, 10, generator=generator, dtype=torch.float64) + 1
    extra = torch.randn(6, 10, generator=generator, dtype=torch.float64)
    outputs = hidden @ extra.T + (0.5 if bias else 0.0)
    moments = [Moments(10, 6, joint=False) for _ in range(2)]
    for each, part in zip(moments, (slice(0, 150), slice(150, None)), strict=True):
        each.add(hidden[part], outputs[part])
    if not bias:
        moments = [each.about_zero() for each in moments]
    [update] = solve_update(*moments, torch.randn(6, 10, generator=generator, dtype=torch.float64))
    torch.testing.assert_close(update.weight, extra, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(update.bias, torch.full((6,), 0.5 if bias else 0.0).double(), rtol=1e-4, atol=1e-4)
    assert update.r2_held_out > 0.999999


def test_folds_are_fitted_for_every_span_and_help():
    model = Net().eval()
    _graph, _batches, folds = fitted(model)
    assert set(folds) == {f"blocks.{a}..blocks.{b}" for a in range(4) for b in range(a + 1, min(a + 3, 4))}
    fold = folds["blocks.1..blocks.3"]
    assert fold.stand_in == Replacement(
        kind="folded", layout="channels_last", in_channels=6, out_channels=6, copies=("blocks.1",)
    )
    assert type(fold.module) is Mlp
    x = torch.randn(64, 5, 4, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        before, target = stream(model, 1, x), stream(model, 4, x)
        kept, folded = model.blocks[1](before), fold.module(before)
    assert (folded - target).square().mean() < 0.7 * (kept - target).square().mean()
    # The layer before it, and the weights around it, are as they were.
    assert torch.equal(fold.module.up.weight, model.blocks[1].up.weight)
    assert fold.module.down.bias is None


@pytest.mark.parametrize("bias", [False, True])
def test_of_its_block_a_fold_has_one_layer_of_its_own(bias):
    """Hundreds of folds would else hold the network many times over."""
    model = Net(bias=bias).eval()
    before = copy.deepcopy(model.state_dict())
    _graph, _batches, folds = fitted(model)
    original = dict(model.blocks[1].named_parameters())
    for name in ("blocks.1..blocks.2", "blocks.1..blocks.3"):
        shared = {
            key for key, value in folds[name].module.named_parameters() if value.data_ptr() == original[key].data_ptr()
        }
        assert set(original) - shared == {"down.weight", *(["down.bias"] if bias else [])}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_bias_that_is_missing_is_not_made_up():
    _, _, folds = fitted(Net(bias=False))
    assert all(fold.module.down.bias is None for fold in folds.values())
    _, _, folds = fitted(Net(bias=True))
    assert any(not torch.equal(fold.module.down.bias, Net(bias=True).blocks[0].down.bias) for fold in folds.values())


def test_few_tokens_take_the_form_of_fewer_unknowns():
    """With fewer tokens than inputs of the layer, a map of what the layer returns does better on tokens held out."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 40, generator=generator, dtype=torch.float64)
    hidden = torch.randn(60, 40, generator=generator, dtype=torch.float64)
    outputs = hidden @ weight.T @ torch.randn(3, 3, generator=generator, dtype=torch.float64)
    outputs += 0.5 * torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    train, held_out = (Moments(40, 3, joint=False) for _ in range(2))
    train.add(hidden[:30], outputs[:30])
    held_out.add(hidden[30:], outputs[30:])
    [update] = solve_update(train, held_out, weight)
    # dW = T W has the row space of W.
    projected = update.weight @ torch.linalg.pinv(weight) @ weight
    torch.testing.assert_close(projected, update.weight)


def test_moments_of_a_map_of_the_inputs_are_those_of_the_mapped_rows():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 3, generator=generator), torch.randn(7, 2, generator=generator)
    weight = torch.randn(2, 3, generator=generator)
    moments, expected = Moments(3, 2), Moments(2, 2)
    moments.add(x, y)
    expected.add(x @ weight.T, y)
    mapped = moments.mapped(weight)
    assert mapped.n == expected.n
    for name in ("mean_x", "mean_y", "xx", "xy", "yy"):
        torch.testing.assert_close(getattr(mapped, name), getattr(expected, name), rtol=1e-5, atol=1e-5)


def test_every_token_counts_the_same():
    """A fold is plain least squares, also where one token's stream is a hundred times as long as the others."""
    model = Net(2).eval()
    samples = torch.randn(64, 5, 4, generator=torch.Generator().manual_seed(0))
    samples[:, 0] *= 100
    batches = [Batch((samples,))]
    graph = analyze(model, batches[0].take(2))
    chain = build_segments(graph)
    specs = folded_specs(graph, chain, find_spans(graph, chain, 2))
    [fold] = fit_folded(graph, batches, specs)
    features: list[torch.Tensor] = []
    model.blocks[0].down.register_forward_pre_hook(lambda _, args: features.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        before, target = stream(model, 1, samples).flatten(0, 1), stream(model, 2, samples).flatten(0, 1)
        left = fold.module(stream(model, 0, samples)).flatten(0, 1) - target
    hidden, missing = features[0].double(), (target - before).double()
    plain = missing - hidden @ torch.linalg.lstsq(hidden, missing, driver="gelsd").solution
    assert left.square().sum() < 1.1 * plain.square().sum()


def test_what_is_no_better_is_left_alone():
    held_out = Moments(2, 1, joint=False)
    held_out.add(torch.eye(2).repeat(4, 1), torch.tensor([[1.0], [0.0]]).repeat(4, 1))
    zero, right = torch.zeros(1, dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert is_better(held_out, (right, zero), (right * 0, zero))
    assert not is_better(held_out, (right, zero), (right, zero))
    assert not is_better(held_out, (right * 0.001, zero), (right * 0, zero))


def folded_network(model, fold, graph):
    cut = analyze(copy.deepcopy(model), Batch((torch.randn(2, 5, 4),)))
    action = Replace(paths=list(fold.span.paths), stand_in=fold.stand_in)
    return replace_spans_(cut, [action], {fold.span.paths[0]: copy.deepcopy(fold.module)}).eval(), action


def test_a_refit_improves_a_fold_on_what_enters_it():
    model = Net(6).eval()
    graph, batches, folds = fitted(model)
    first, second = folds["blocks.0..blocks.1"], folds["blocks.3..blocks.5"]
    network, _ = folded_network(model, first, graph)
    network.blocks[3], network.blocks[4], network.blocks[5] = copy.deepcopy(second.module), nn.Identity(), nn.Identity()
    refitted = refit_(graph, copy.deepcopy(network), [first, second], batches)
    x = torch.randn(64, 5, 4, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        target = model(x)
        errors = [(made(x) - target).square().mean() for made in (network, refitted)]
    assert errors[1] < errors[0]
    assert type(refitted.blocks[3]) is Mlp


def test_a_refit_looks_ahead_over_blocks_that_are_removed():
    """The last layer in front of removed blocks is set to what the stream is behind them."""
    model = Net(5).eval()
    graph, batches, folds = fitted(model)
    cut = analyze(copy.deepcopy(model), Batch((torch.randn(2, 5, 4),)))
    network = remove_blocks_(cut, ["blocks.2", "blocks.3"])
    refitted = refit_(graph, copy.deepcopy(network), [], batches, removed=["blocks.2", "blocks.3"])
    assert not torch.equal(refitted.blocks[1].down.weight, model.blocks[1].down.weight)
    fold = folds["blocks.1..blocks.3"]
    torch.testing.assert_close(refitted.blocks[1].down.weight, fold.module.down.weight, rtol=0, atol=0.1)
    x = torch.randn(64, 5, 4, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        target = model(x)
        errors = [(made(x) - target).square().mean() for made in (network, refitted)]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize(("lost", "refitted_layer"), [("#1", "mixer.out"), ("#0", "fc2")])
def test_a_refit_makes_up_for_a_single_unit(lost, refitted_layer):
    model = halves.Halves().eval()
    batches = [Batch((halves.samples(64, seed=seed),)) for seed in range(2)]
    graph = analyze(model, batches[0].take(2))
    cut = analyze(copy.deepcopy(model), batches[0].take(2))
    network = remove_blocks_(cut, [f"blocks.1{lost}"])
    refitted = refit_(graph, copy.deepcopy(network), [], batches, removed=[f"blocks.1{lost}"])
    x = halves.samples(64, seed=9)
    changed = [
        name
        for name, weight in refitted.state_dict().items()
        if name.startswith("blocks.1") and not torch.equal(weight, network.state_dict()[name])
    ]
    assert changed
    assert all(name.startswith(f"blocks.1.{refitted_layer}") for name in changed)
    with torch.no_grad():
        target = model(x)
        errors = [(made(x) - target).square().mean() for made in (network, refitted)]
    assert errors[1] < errors[0]


def test_a_plan_with_a_fold_is_rebuilt_from_the_original():
    model = Net().eval()
    graph, _, folds = fitted(model)
    network, action = folded_network(model, folds["blocks.1..blocks.3"], graph)
    plan = Plan(
        inputs=input_specs(Batch((torch.randn(2, 5, 4),))),
        network=signature_of(graph.model, graph.chain),
        actions=[action],
    )
    assert plan.folded_away == ["blocks.2", "blocks.3"]
    rebuilt = apply(Net(), Plan.model_validate_json(plan.model_dump_json()), weights_follow=True)
    assert set(rebuilt.state_dict()) == set(network.state_dict())
    rebuilt.load_state_dict(network.state_dict())
    x = torch.randn(4, 5, 4)
    assert torch.equal(rebuilt(x), network(x))


def test_a_fold_is_in_one_block():
    with pytest.raises(ValueError, match="'folded' changes one block, the first of its span"):
        Replacement(kind="folded", layout="channels_last", in_channels=4, out_channels=4, copies=("a", "b"))
    with pytest.raises(ValueError, match="'block', 'narrow', 'folded', 'linear_attention'"):
        Replacement(kind="folded", layout="channels_last", in_channels=4, out_channels=4)
    stand_in = Replacement(kind="folded", layout="channels_last", in_channels=4, out_channels=4, copies=("blocks.9",))
    with pytest.raises(SurgeryError, match=r"a student of blocks.9 cannot be made of this network"):
        build_replacement(stand_in, torch.zeros(1), Net())


class Scaled(nn.Module):
    """Its branch ends in a scale, not in a linear layer."""

    def __init__(self):
        super().__init__()
        self.down, self.scale = nn.Linear(6, 6), nn.Parameter(torch.full((6,), 0.5))

    def forward(self, x):
        return x + self.scale * self.down(x)


def test_only_blocks_that_end_in_a_linear_layer_take_others_over():
    model = Net()
    model.blocks[1] = Scaled()
    _, _, folds = fitted(model)
    assert not any(name.startswith("blocks.1") for name in folds)
    assert "blocks.0..blocks.2" in folds


@pytest.mark.heavy
def test_a_folded_language_model_is_one_of_its_class(tmp_path):
    """`hf/` is written, plain transformers loads it, and its outputs are the same to the bit."""
    from transformers import AutoModelForCausalLM

    model = language.llama(4)
    data = [{"input_ids": language.tokens(8, seed=seed)} for seed in range(3)]
    config = CompressConfig(stand_ins=("folded",), latency_seconds=0.01)
    result = compress(model, data, Budget(depth=2, include=["model.layers.[123]"]), config=config)
    assert result.record.replaced or result.record.removed
    result.save(tmp_path / "out")
    assert not (tmp_path / "out" / "hf-not-written.md").exists()
    short = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "hf").eval()
    assert len(short.model.layers) == 2
    ids = language.tokens(2, 9)
    with torch.no_grad():
        assert torch.equal(short(input_ids=ids).logits, result.model(input_ids=ids).logits)
    again = load(tmp_path / "out", model=lambda: language.llama(4))
    assert torch.equal(again(input_ids=ids).logits, result.model(input_ids=ids).logits)
    assert all(isinstance(action, Remove | Replace) for action in result.plan.actions)


def test_nothing_is_folded_into_weights_on_a_disk(monkeypatch):
    monkeypatch.setattr("shoal.replace.folded.is_offloaded", lambda model: True)
    _, _, folds = fitted(Net())
    assert folds == {}
