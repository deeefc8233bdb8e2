"""Networks whose weights lie on a disk: scanned, fitted, cut and saved as those in memory are, to the same numbers."""

import copy
from pathlib import Path

import pytest
import torch
from accelerate import disk_offload
from safetensors.torch import load_file
from torch import nn

import language
import networks
from shoal.batches import Batch, device_of, like_of
from shoal.blocks import analyze
from shoal.errors import NonFiniteError, WeightsError
from shoal.offloaded import is_offloaded, loading_unwatched, weights, where_it_runs, with_tensor
from shoal.pipeline import Budget, CompressConfig, compress
from shoal.preserve import check_finite
from shoal.replace import ReplacementSpec, build_segments, find_spans, fit_all
from shoal.scanning import ScanConfig, removal_sweep, scan
from shoal.store.save import save_weights
from shoal.surgery import remove_blocks
from shoal.surgery.canonical_form import model_digest

pytestmark = pytest.mark.filterwarnings("ignore:no Taylor scores", "ignore:.*non-writable:UserWarning")


@pytest.fixture
def pair(tmp_path):
    """The same language model in memory and on a disk."""
    kept = language.llama()
    return kept, on_disk(kept, tmp_path / "weights")


def on_disk(model, folder):
    """A copy whose weights are in a folder."""
    gone = copy.deepcopy(model)
    disk_offload(gone, folder, execution_device=torch.device("cpu"))
    assert all(parameter.is_meta for parameter in gone.parameters())
    return gone


def batch(count=6, seed=0):
    return Batch(kwargs={"input_ids": language.tokens(count, seed=seed)})


def test_weights_are_read_one_at_a_time(pair):
    kept, gone = pair
    assert (is_offloaded(kept), is_offloaded(gone)) == (False, True)
    found = dict(weights(gone))
    assert list(found) == list(dict(weights(kept)))
    for name, tensor in kept.state_dict().items():
        assert torch.equal(found[name], tensor)
    assert model_digest(gone) == model_digest(kept)
    check_finite(gone)


def test_where_it_is_computed(pair):
    kept, gone = pair
    assert where_it_runs(kept) is None
    assert where_it_runs(gone) == device_of(gone) == torch.device("cpu")
    assert like_of(gone).dtype == torch.float32
    assert not like_of(gone).is_meta


def test_the_trace_is_that_of_the_network_in_memory(pair):
    one, other = (analyze(model, batch(2)) for model in pair)
    assert other.chain == one.chain
    named = [(value.origin, value.name) for value in one.trace.values if value.name]
    assert [(value.origin, value.name) for value in other.trace.values if value.name] == named
    assert [op.name for op in other.trace.ops] == [op.name for op in one.trace.ops]
    assert len(other.trace.constants) == len(one.trace.constants)  # no weight is kept as a constant


def test_removals_are_worth_the_same(pair):
    found = [removal_sweep(analyze(model, batch(2)), [batch()], ["model.layers.1", "model.layers.2"]) for model in pair]
    assert found[0] == found[1]


def test_a_scan_finds_the_same(pair):
    one, other = (scan(model, [batch()], config=ScanConfig(scores=True)) for model in pair)
    for block, same in zip(one.blocks, other.blocks, strict=True):
        assert same.ablations == block.ablations
        scores = {name: value for name, value in block.scores.items() if name != "taylor"}
        assert same.scores == scores
    kernels = [layer.ablations["kernel"].kl for layer in one.layers]
    assert [layer.ablations["kernel"].kl for layer in other.layers] == kernels
    assert max(kernels) > 0
    assert any("not in memory" in note for note in other.notes)


def test_fits_are_the_same(pair):
    found = []
    for model in pair:
        anatomy = analyze(model, batch(2))
        span = next(one for one in find_spans(anatomy, build_segments(anatomy), 2) if one.stop - one.start == 2)
        [fitted] = fit_all(anatomy, [batch(8), batch(8, seed=1)], [ReplacementSpec(span, "linear")])
        found.append(fitted.module.state_dict())
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_a_removal_and_its_weights_on_the_disk(pair, tmp_path):
    kept, gone = pair
    cut = [remove_blocks(model, batch(2), ["model.layers.1"]) for model in (kept, gone)]
    assert is_offloaded(gone)
    with torch.no_grad():
        outputs = [model(**batch().kwargs).logits for model in cut]
    assert torch.equal(*outputs)
    for number, model in enumerate(cut):
        save_weights(model, tmp_path / f"{number}.safetensors")
    one, other = (load_file(tmp_path / f"{number}.safetensors") for number in range(2))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_plan_with_stand_ins(tmp_path):
    settings = CompressConfig(images=32, latency_seconds=0.01)
    kept = language.llama()
    with torch.no_grad():
        for layer in kept.model.layers:  # each does something, so that no removal is as good as a replacement
            layer.mlp.down_proj.weight.mul_(30)
    records = [
        compress(model, [batch(8), batch(8, seed=1)], Budget(macs=0.5), config=settings).record
        for model in (kept, on_disk(kept, tmp_path / "weights"))
    ]
    assert all(one.reached and one.replaced for one in records)
    assert records[1].compressed.cost.macs <= 0.5 * records[0].original.cost.macs


def test_another_value_for_a_weight_comes_and_goes(pair):
    for model in pair:
        layer = model.model.layers[0].mlp.down_proj
        x = torch.ones(1, layer.in_features)
        with torch.no_grad():
            before = layer(x)
            with with_tensor(layer, "weight", torch.zeros(layer.out_features, layer.in_features)):
                assert not layer(x).any()
            assert torch.equal(layer(x), before)
            assert before.any()


def fail(hook):
    assert "pre_forward" in vars(hook)
    raise RuntimeError("on purpose")


def test_hooks_are_as_before_when_a_trace_has_raised(pair):
    hook = pair[1].model.layers[0].mlp.down_proj._hf_hook
    with pytest.raises(RuntimeError, match="on purpose"), loading_unwatched(pair[1]):
        fail(hook)
    assert not {"pre_forward", "post_forward"} & set(vars(hook))


def test_a_weight_that_is_nowhere_is_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3, device="meta"))
    with pytest.raises(WeightsError, match=r"'1\.weight' has no values"):
        analyze(model, Batch((torch.ones(2, 2),)))


def test_nan_on_the_disk_is_found(tmp_path):
    model = networks.PreactNet(4, 2).eval()
    with torch.no_grad():
        next(reversed(list(model.parameters()))).fill_(float("nan"))
    disk_offload(model, tmp_path, execution_device=torch.device("cpu"))
    with pytest.raises(NonFiniteError, match="NaN or Inf"):
        check_finite(model)


def test_the_page_runs_as_it_stands(tmp_path, capsys):
    page = (Path(__file__).parent.parent / "docs" / "large-networks.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    language.llama().save_pretrained(tmp_path / "net")
    given = {"FOLDER": tmp_path / "net", "OFFLOADED": tmp_path / "weights", "TOKENS": language.tokens(4)}
    exec(compile(code, "large-networks.md", "exec"), given)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == [f"model.layers.{number}" for number in range(4)]
