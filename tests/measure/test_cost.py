import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as module_globals

from shoal.batches import Batch
from shoal.errors import DataError, ModelRaisedError
from shoal.measure.cost import cost, macs_by_module


def images(size, samples=1):
    return Batch((torch.randn(samples, 3, size, size),))


@pytest.mark.parametrize(
    ("name", "params", "gmacs"),
    [("resnet18", 11_689_512, 1.814), ("resnet50", 25_557_032, 4.089), ("vit_b_16", 86_567_656, 17.56)],
)
def test_published_networks(name, params, gmacs):
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = getattr(torchvision.models, name)()
    if name == "vit_b_16":
        # Which kernel computes attention depends on the device, so this one really runs.
        model = model.to_empty(device="cpu")
    found = cost(model, images(224))
    assert found.params == params
    assert found.macs / 1e9 == pytest.approx(gmacs, rel=5e-3)
    assert found.not_counted == []
    assert found.input_shape == [3, 224, 224]


def test_a_batch_costs_what_one_sample_costs():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
    expected = 36 * 4 * 27 + 4 * 36 * 10
    assert cost(model, images(6, samples=1)).macs == expected
    assert cost(model, images(6, samples=5)).macs == expected


class Attention(nn.Module):
    def __init__(self, queries=4, keys=4):
        super().__init__()
        self.queries, self.keys = queries, keys

    def forward(self, x):
        samples, tokens, _ = x.shape
        q = x.new_ones(samples, self.queries, tokens, 8)
        k = x.new_ones(samples, self.keys, tokens, 8)
        return F.scaled_dot_product_attention(q, k, k, enable_gqa=self.queries != self.keys)


@pytest.mark.parametrize("keys", [4, 2])
@pytest.mark.parametrize("backend", ["FLASH_ATTENTION", "MATH"])
def test_attention_counts_whichever_kernel_computes_it(backend, keys):
    network, x = Attention(keys=keys), torch.randn(2, 10, 32)
    with torch.nn.attention.sdpa_kernel(getattr(torch.nn.attention.SDPBackend, backend)):
        try:
            network(x)
        except RuntimeError:
            pytest.skip("this version of torch has no such kernel for this device")
        found = cost(network, Batch((x,)))
    assert found.macs == 2 * 4 * 10 * 10 * 8
    assert found.not_counted == []


@pytest.mark.parametrize("enabled", [True, False])
def test_transformer_encoder_without_its_fast_path(enabled):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        found = cost(nn.TransformerEncoder(layer, 2), Batch((torch.randn(2, 10, 32),)))
        assert torch.backends.mha.get_fastpath_enabled() is enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    assert found.macs == 2 * (10 * 32 * 32 * 4 + 2 * 10 * 10 * 32 + 2 * 10 * 32 * 64)
    assert found.not_counted == []


@pytest.mark.parametrize(
    ("model", "shapes", "name"),
    [
        (nn.LSTM(8, 8), [(1, 5, 8)], "rnn"),
        (nn.Bilinear(4, 4, 4), [(2, 4), (2, 4)], "trilinear"),
    ],
)
def test_what_has_no_formula_is_named(model, shapes, name):
    found = cost(model, Batch(tuple(torch.randn(shape) for shape in shapes)))
    assert len(found.not_counted) == 1
    assert name in found.not_counted[0]


def test_custom_operators_are_named():
    @torch.library.custom_op("shoaltest::blur", mutates_args=())
    def blur(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    class Custom(nn.Module):
        def forward(self, x):
            return blur(x)

    assert cost(Custom(), images(4)).not_counted == ["shoaltest.blur"]


def test_cheap_operators_are_not_named():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Hardswish(inplace=True), nn.MaxPool2d(2),
        nn.GroupNorm(2, 8),
        nn.Upsample(scale_factor=2, mode="bilinear"), nn.PReLU(), nn.Dropout(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 4), nn.Mish(inplace=True), nn.LogSigmoid(), nn.Softmax(1),
    )  # fmt: skip
    assert cost(model, images(12)).not_counted == []


def test_tied_weights_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embed.weight
            self.twin = nn.Linear(4, 10, bias=False)
            self.twin.weight = nn.Parameter(self.embed.weight.data)
            self.register_buffer("scale", torch.ones(3, dtype=torch.float64))
            self.register_buffer("scratch", torch.ones(99), persistent=False)

        def forward(self, x):
            return self.head(self.embed(x)) + self.twin(self.embed(x))

    found = cost(Tied(), Batch((torch.zeros(1, 2, dtype=torch.long),)))
    assert found.params == 40
    assert found.weights_bytes == 40 * 4 + 3 * 8


def test_half_precision_weights_take_half():
    model = nn.Linear(8, 4)
    batch = Batch((torch.randn(1, 8),))
    whole = cost(model, batch)
    half = cost(model.to(torch.bfloat16), Batch((batch.args[0].bfloat16(),)))
    assert (half.params, half.macs, half.weights_bytes) == (
        whole.params,
        whole.macs,
        whole.weights_bytes // 2,
    )


class Twice(nn.Module):
    def __init__(self, raises=False):
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.body = nn.ModuleDict({"alias": self.shared, "norm": nn.BatchNorm1d(4)})
        self.unused = nn.Linear(4, 4)
        self.free = nn.Parameter(torch.randn(4, 6))
        self.raises = raises

    def forward(self, x):
        x = self.shared(self.body["norm"](self.shared(x)))
        if self.raises:
            raise ValueError("broken on purpose")
        return x @ self.free


def test_macs_by_module():
    found = macs_by_module(Twice(), Batch((torch.randn(3, 4),)))
    assert found == {"": 32 + 24, "shared": 32, "body": 0, "body.norm": 0, "unused": 0}


def test_macs_of_a_module_hold_its_children():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), nn.Linear(2, 3))
    found = macs_by_module(model, Batch((torch.randn(1, 4),)))
    assert found == {"": 30, "0": 24, "0.0": 16, "0.1": 0, "0.2": 8, "1": 6}
    assert found[""] == cost(model, Batch((torch.randn(1, 4),))).macs


@pytest.mark.parametrize("raises", [False, True])
@pytest.mark.parametrize("function", [cost, macs_by_module])
def test_the_model_comes_back_as_it_was(function, raises):
    model = Twice(raises).train()
    model.unused.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    batch = Batch((torch.ones(3, 4),))
    if raises:
        with pytest.raises(ModelRaisedError, match="broken on purpose"):
            function(model, batch)
    else:
        function(model, batch)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not module_globals._global_forward_hooks
    assert not module_globals._global_forward_pre_hooks
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_batch_without_samples_is_refused():
    with pytest.raises(DataError):
        cost(nn.Linear(4, 4), Batch((torch.randn(0, 4),)))
    with pytest.raises(DataError):
        macs_by_module(nn.Linear(4, 4), Batch())
