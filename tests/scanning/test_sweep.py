import pytest
import torch
from torch import nn

import halves
import language
import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import DataError, ModelRaisedError, NonFiniteError
from shoal.measure import kl_per_sample, log_probabilities, mean_interval
from shoal.measure.output_reading import reading_of
from shoal.scanning import divergence, removal_sweep
from shoal.scanning.damage import OutputDamage
from shoal.surgery import remove_blocks


def prepared():
    torch.manual_seed(0)
    net = networks.randomised(networks.CifarResNet(2, widths=(4, 8, 12)))
    loader = [(torch.randn(5, 3, 8, 8), torch.randint(0, 10, (5,))) for _ in range(3)]
    return net, analyze(net, Batch((loader[0][0],))), loader


def damage_by_hand(net, loader, paths):
    cut = remove_blocks(net, Batch((loader[0][0],)), paths)
    with torch.no_grad():
        if loader[0][1] is not None:
            return torch.cat([kl_per_sample(log_probabilities(net(x)), cut(x)) for x, _ in loader]).double()
        before, after = (torch.cat([one(x) for x, _ in loader]).double() for one in (net, cut))
        return (before - after).square().flatten(1).mean(1) / before.var(0, correction=0).mean()


class Detector(nn.Module):
    """Returns as many boxes as it likes for each sample."""

    def __init__(self):
        super().__init__()
        self.net = networks.PreactNet(4, 3)

    def forward(self, x):
        return [{"boxes": torch.ones(7, 4) * row.sum()} for row in self.net(x)]


def test_results_without_a_row_for_each_sample_are_refused():
    anatomy = analyze(Detector().eval(), Batch((torch.randn(2, 1, 6, 6),)))
    with pytest.raises(DataError, match=r"returned shape \(7, 4\) for 3 samples"):
        removal_sweep(anatomy, [torch.randn(3, 1, 6, 6)], anatomy.chain.paths)


def test_the_worth_of_a_block_is_the_damage_of_its_physical_removal():
    net, anatomy, loader = prepared()
    found = removal_sweep(anatomy, loader, anatomy.chain.paths)
    assert [one.path for one in found] == anatomy.chain.paths
    for one in found:
        expected = damage_by_hand(net, loader, [one.path])
        assert one.damage == pytest.approx(float(expected.mean()), abs=1e-12)
        assert one.interval == pytest.approx(mean_interval(expected.numpy()), abs=1e-12)
        assert one.interval[0] <= one.damage <= one.interval[1]
        assert one.n == 15


def test_with_blocks_gone_damage_is_still_against_the_whole():
    net, anatomy, loader = prepared()
    gone = ["layer2.1", "layer1.0"]
    found = removal_sweep(anatomy, loader, ["layer1.1", "layer3.0"], removed=gone)
    for one in found:
        assert one.damage == pytest.approx(float(damage_by_hand(net, loader, [*gone, one.path]).mean()), abs=1e-12)


def test_a_dead_block_is_worth_nothing_exactly():
    net, _, loader = prepared()
    with torch.no_grad():
        net.layer2[1].bn2.weight.zero_()
        net.layer2[1].bn2.bias.zero_()
    found = removal_sweep(analyze(net, Batch((loader[0][0],))), loader, ["layer2.1", "layer2.0"])
    assert found[0].damage == 0.0
    assert found[1].damage > 0


def test_the_order_of_candidates_and_the_split_into_batches_do_not_matter():
    _, anatomy, loader = prepared()
    paths = anatomy.chain.paths
    forth = removal_sweep(anatomy, loader, paths)
    back = removal_sweep(anatomy, loader, paths[::-1])
    assert [one.path for one in back] == paths[::-1]
    assert {one.path: one.damage for one in forth} == {one.path: one.damage for one in back}
    whole = removal_sweep(anatomy, [tuple(torch.cat(parts) for parts in zip(*loader, strict=True))], paths)
    for one, other in zip(forth, whole, strict=True):
        assert one.damage == pytest.approx(other.damage, rel=1e-4)


def test_any_damage_per_sample_can_be_measured_and_progress_is_told():
    _, anatomy, loader = prepared()
    seen, ticks = [], []

    def mistakes(original, output, batch):
        seen.append((original.shape, output.shape, batch.size))
        return (output.argmax(1) != batch.target).float()

    found = removal_sweep(
        anatomy, loader, ["layer1.0", "layer1.1"], damage=mistakes, on_progress=lambda *at: ticks.append(at)
    )
    assert all(0 <= one.damage <= 1 for one in found)
    assert set(seen) == {((5, 10), (5, 10), 5)}
    assert ticks[-1][0] == ticks[-1][1]


def test_a_damage_that_computes_in_place_changes_no_other_figure():
    model, anatomy, loader = prepared()
    reading = reading_of(model, loader)
    figures = []
    for function in (
        lambda original, output, batch: (original - output).square().sum(1),
        lambda original, output, batch: original.sub_(output).square_().sum(1) + 0 * batch.args[0].zero_().sum(),
    ):
        sweep = removal_sweep(anatomy, loader, ["layer1.0", "layer1.1"], damage=OutputDamage(reading, function))
        figures.append([candidate.damage for candidate in sweep])
    assert figures[0] == figures[1]
    assert min(figures[0]) > 0


def test_the_default_damage_is_never_negative_and_zero_for_the_same():
    logits = 5 * torch.randn(20, 7)
    for batch in (Batch((logits,)), Batch((logits,), target=torch.arange(20) % 7)):
        assert (divergence(logits, logits.clone(), batch) == 0).all()
        assert (divergence(logits, torch.randn(20, 7), batch) > 0).all()


def test_no_candidates_no_work():
    _, anatomy, loader = prepared()
    assert removal_sweep(anatomy, loader, []) == []


def test_no_data_is_an_error():
    _, anatomy, _ = prepared()
    with pytest.raises(DataError, match="no data to measure on"):
        removal_sweep(anatomy, [], ["layer1.0"])


def test_numbers_that_are_not_finite_are_refused():
    _, anatomy, _loader = prepared()
    with pytest.raises(NonFiniteError, match="output holds NaN or Inf"):
        removal_sweep(anatomy, [(torch.full((1, 3, 8, 8), float("nan")), None)], ["layer1.0"])


def test_what_the_model_raises_is_readable():
    _, anatomy, _ = prepared()
    with pytest.raises(ModelRaisedError, match=r"shape \(1, 5, 8, 8\)"):
        removal_sweep(anatomy, [torch.randn(1, 5, 8, 8)], ["layer1.0"])


def test_tokens_are_averaged_over_their_positions():
    library = pytest.importorskip("transformers")
    config = library.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    net: nn.Module = library.GPT2LMHeadModel(config).eval()
    loader = [{"input_ids": torch.randint(0, 50, (3, 7))} for _ in range(2)]
    anatomy = analyze(net, Batch((), loader[0]))
    found = removal_sweep(anatomy, loader, anatomy.chain.paths)
    assert [one.n for one in found] == [6, 6]
    assert all(one.damage > 0 for one in found)


def test_padding_does_no_damage():
    ids, mask = language.tokens(4, 10), (torch.arange(10) < torch.tensor([[10], [7], [4], [9]])).long()
    net = language.llama()
    found = []
    for padding in (4, 50):
        batch = {"input_ids": torch.where(mask == 1, ids, padding), "attention_mask": mask}
        anatomy = analyze(net, Batch(kwargs=batch))
        found.append(removal_sweep(anatomy, [batch], ["model.layers.1"])[0].damage)
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_units_and_blocks_with_their_norms_are_worth_what_their_removal_does():
    model = halves.Halves().eval()
    loader = [(halves.samples(4, seed), torch.zeros(4, dtype=torch.long)) for seed in range(2)]
    anatomy = analyze(model, Batch((loader[0][0],)))
    gone = ["blocks.1#0", "blocks.2"]
    found = removal_sweep(anatomy, loader, ["blocks.0#0", "blocks.0#1", "blocks.1#1"], removed=gone)
    for one in found:
        expected = damage_by_hand(model, loader, [*gone, one.path]).mean()
        assert one.damage == pytest.approx(float(expected), abs=1e-12)
    torch.manual_seed(0)
    net = networks.PostNormNet().eval()
    tokens = [torch.randn(4, 5, 8)]
    names = ["encoder.layers.1", "encoder.layers.1+norms"]
    damages = removal_sweep(analyze(net, Batch((tokens[0],))), tokens, names)
    loader = [(tokens[0], None)]
    for one in damages:
        expected = damage_by_hand(net, loader, [one.path]).mean()
        assert one.damage == pytest.approx(float(expected), abs=1e-9)
    assert damages[0].damage != damages[1].damage


class Encoder(nn.Module):
    """torch's own layers, which hand their weights to one fused function where nothing needs a gradient."""

    def __init__(self, norm_first):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(self.layer(norm_first) for _ in range(3))
        self.head = nn.Linear(8, 4)

    @staticmethod
    def layer(norm_first):
        return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(dim=1))


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_unit_of_a_fused_layer_is_worth_what_its_removal_does(norm_first):
    net = Encoder(norm_first).eval()
    loader = [(torch.randn(5, 6, 8), torch.zeros(5, dtype=torch.long)) for _ in range(2)]
    graph = analyze(net, Batch((loader[0][0],)))
    names = [f"layers.{block}{unit}" for block in range(3) for unit in ("", "#0", "#1")]
    for removed in ([], ["layers.0", "layers.1#0"]):
        tried = [name for name in names if not any(name.startswith(other[:8]) for other in removed)]
        for worth in removal_sweep(graph, loader, tried, removed=removed):
            expected = float(damage_by_hand(net, loader, [*removed, worth.path]).mean())
            assert worth.damage == pytest.approx(expected, rel=1e-4), worth.path
            assert worth.damage > 1e-6
    assert not any(module._forward_hooks for module in net.modules())
