import copy
import gc
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import networks
from shoal.batches import as_batch
from shoal.blocks import analyze
from shoal.blocks.interception import intercept_additions
from shoal.errors import DataError, ModelRaisedError, NonFiniteError, UsageError
from shoal.measure.output_reading import OutputReading, Reading
from shoal.preserve import evaluating
from shoal.scanning import responses
from shoal.scanning.scores import SCORES
from shoal.scanning.scores.collect import block_scores
from shoal.scanning.scores.correlation import rank_correlation


def images(n=10, channels=3, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, channels, size, size, generator=generator), torch.randint(0, 10, (n,), generator=generator)


def cut(data, size=4):
    return list(zip(data[0].split(size), data[1].split(size), strict=True))


def cifar():
    torch.manual_seed(0)
    return networks.randomised(networks.CifarResNet(2, widths=(4, 8, 8)))


def vectors(n=9, width=4, shape=()):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, *shape, width, generator=generator), torch.randint(0, 3, (n,), generator=generator)


NETWORKS = {
    "cifar": (cifar, images),
    "preact": (lambda: networks.randomised(networks.PreactNet()), lambda: images(channels=1, size=6)),
    "vectors": (lambda: networks.NumberedNet().eval(), vectors),
    "two units": (lambda: networks.PostNormNet().eval(), lambda: vectors(width=8, shape=(5,))),
}


@pytest.fixture(params=NETWORKS)
def case(request):
    make, data = NETWORKS[request.param]
    torch.manual_seed(3)
    net = make()
    data = data()
    return net, data, analyze(net, as_batch((data[0][:2],)))


def mean_loss(net, data):
    with torch.no_grad():
        return float(nn.functional.cross_entropy(net(data[0]).double(), data[1]))


def test_taylor_is_the_slope_of_the_loss_as_the_branch_fades(case):
    net, data, anatomy = case
    net.double()
    data = data[0].double(), data[1]
    found = block_scores(anatomy, cut(data))
    for block in anatomy.chain:
        faded = []
        for share in (1e-4, -1e-4):
            fade = lambda path, unit, stream, branch, share=share: (1 - share) * branch
            with evaluating(net), intercept_additions(net, [block], fade):
                faded.append(mean_loss(net, data))
        slope = (faded[0] - faded[1]) / 2e-4
        assert found[block.path]["taylor"] == pytest.approx(slope, rel=1e-4, abs=1e-7)
        assert slope != 0


def test_the_other_scores_against_whole_tensors(case):
    net, data, anatomy = case
    found = block_scores(anatomy, cut(data))
    for block in anatomy.chain:
        streams, branches, ends = [], [], []

        def look(path, unit, stream, branch, streams=streams, branches=branches):
            streams.append(stream.clone())
            branches.append(branch.clone())

        hook = net.get_submodule(block.path).register_forward_hook(
            lambda m, args, out, e=ends: e.extend([args[0], out])
        )
        with evaluating(net), intercept_additions(net, [block], look):
            net(data[0])
        hook.remove()
        scores, whole = found[block.path], sum(branches)
        assert scores["largest_response"] == pytest.approx(max(float(one.abs().max()) for one in branches))
        assert scores["mean_response"] == pytest.approx(float(whole.abs().mean()), rel=1e-5)
        ratio = whole.flatten(1).norm(dim=1) / streams[0].flatten(1).norm(dim=1)
        assert scores["relative_response"] == pytest.approx(float(ratio.mean()), rel=1e-5)
        x, y = ends
        assert ("block_influence" in scores) == (x.shape == y.shape)
        if x.shape == y.shape:
            axis = 1 if x.dim() == 4 else -1
            cosine = torch.nn.functional.cosine_similarity(x, y, dim=axis)
            cosine = torch.where((x == 0).all(axis) & (y == 0).all(axis), 1.0, cosine)
            assert scores["block_influence"] == pytest.approx(float(1 - cosine.mean()), rel=1e-4, abs=1e-6)
            rows = [one.movedim(axis, -1).flatten(0, -2).double() for one in (x, y)]
            x, y = (one - one.mean(0) for one in rows)
            cka = (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
            assert scores["linear_cka"] == pytest.approx(float(cka), rel=1e-5)
            assert -1 < scores["linear_map_r2"] <= 1


def test_the_cut_into_mini_batches_does_not_matter(case):
    _, data, anatomy = case
    one, other = block_scores(anatomy, cut(data, 3)), block_scores(anatomy, cut(data, 100))
    assert list(one) == anatomy.chain.paths
    for path, scores in one.items():
        assert scores == pytest.approx(other[path], rel=1e-4, abs=1e-5)


def test_a_dead_block_is_told_exactly():
    net = cifar()
    for dead in (net.layer1[1], net.layer3[1]):
        nn.init.zeros_(dead.bn2.weight)
        nn.init.zeros_(dead.bn2.bias)
    data = images()
    found = block_scores(analyze(net, as_batch(data)), cut(data))
    for path in ("layer1.1", "layer3.1"):
        scores = found[path]
        for name in ("largest_response", "mean_response", "relative_response", "block_influence", "taylor"):
            assert scores[name] == 0, name
        assert scores["linear_cka"] == pytest.approx(1, abs=1e-12)
        assert scores["linear_map_r2"] == pytest.approx(1, abs=1e-12)
    assert all(found["layer2.1"][name] > 0 for name in ("largest_response", "block_influence"))


def test_a_block_that_changes_the_positions_lacks_what_compares_them():
    data = images()
    found = block_scores(analyze(cifar(), as_batch(data)), cut(data))
    assert set(found["layer1.0"]) == set(SCORES)
    assert set(found["layer2.0"]) == {"largest_response", "mean_response", "relative_response", "taylor"}
    # Stage 3 keeps the width here, but not the positions.
    assert set(found["layer3.0"]) == set(found["layer2.0"])


def test_a_change_of_channels_alone_leaves_what_compares_positions():
    class Widening(nn.Module):
        def __init__(self):
            super().__init__()
            self.short, self.fc = nn.Linear(4, 6), nn.Linear(4, 6)

        def forward(self, x):
            return self.short(x) + self.fc(x).tanh()

    net, data = nn.Sequential(nn.Linear(4, 4), Widening(), nn.Linear(6, 3)), vectors(40)
    scores = block_scores(analyze(net, as_batch(data)), [data])["1"]
    assert set(SCORES) - set(scores) == {"block_influence"}


def test_the_responses_agree_with_the_epsilon_scan(case):
    _, data, anatomy = case
    found, before = block_scores(anatomy, cut(data)), responses(anatomy, cut(data))
    for path, response in before.items():
        assert found[path]["largest_response"] == response.largest_branch


def state_of(net):
    return (
        [(name, module.training) for name, module in net.named_modules()],
        [(name, one.requires_grad, one.grad) for name, one in net.named_parameters()],
        {name: value.clone() for name, value in net.state_dict().items()},
        [len(hooks) for m in net.modules() for hooks in (m._forward_hooks, m._forward_pre_hooks)],
        torch.random.get_rng_state(),
        torch.is_grad_enabled(),
    )


def assert_untouched(before, after):
    assert before[0] == after[0]
    assert before[1] == after[1]
    assert all(torch.equal(before[2][name], after[2][name]) for name in after[2])
    assert before[3] == after[3]
    assert torch.equal(before[4], after[4])
    assert before[5] == after[5]


@pytest.mark.parametrize("raises", [None, "first", "later", "backward"])
def test_the_network_is_left_as_it_was(raises):
    net = cifar().train()
    net.layer1.eval()
    net.conv1.weight.requires_grad_(False)
    anatomy = analyze(net, as_batch(images()))
    before = state_of(net)
    calls = []

    def failing(module, args, output):
        calls.append(1)
        if raises == "first" or (raises == "later" and len(calls) == 3):
            raise RuntimeError("from the model")
        if raises == "backward" and len(calls) == 2:
            output.register_hook(lambda gradient: 1 / 0)

    handle = net.linear.register_forward_hook(failing)
    before = state_of(net)
    if raises:
        kind = ZeroDivisionError if raises == "backward" else ModelRaisedError
        with pytest.raises(kind), pytest.warns() if raises == "first" else nullcontext():
            block_scores(anatomy, cut(images()))
    else:
        block_scores(anatomy, cut(images()))
        assert len(calls) == 1 + 3  # one sample to see whether gradients come through, then one a mini-batch
    assert_untouched(before, state_of(net))
    handle.remove()


def test_nothing_in_front_of_the_first_branch_is_kept_for_the_backward():
    net, seen = cifar(), []
    anatomy = analyze(net, as_batch(images()))
    for module in (net.bn1, net.layer1[0].bn2, net.layer1[1].bn2):
        module.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    block_scores(anatomy, [images()])
    assert seen == 2 * [False, False, True]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data():
    net, sizes = cifar(), []
    anatomy = analyze(net, as_batch(images()))

    def loader():
        for seed in range(4):
            gc.collect()
            sizes.append(sum(one.numel() for one in gc.get_objects() if type(one) is torch.Tensor))
            yield images(6, seed=seed)

    block_scores(anatomy, loader())
    assert len(set(sizes[1:])) == 1


def test_without_labels_the_own_answers_stand_in():
    net, (x, _) = cifar(), images()
    anatomy = analyze(net, as_batch(x))
    with torch.no_grad():
        answers = net(x).argmax(dim=1)
    classes = Reading((OutputReading("", "classes", "as the test says"),))
    unlabelled, labelled = block_scores(anatomy, [x], reading=classes), block_scores(anatomy, [(x, answers)])
    assert unlabelled == labelled
    assert block_scores(anatomy, [(x, torch.randn(10, 3))], reading=classes) == labelled
    assert block_scores(anatomy, [(x, (answers + 1) % 10)]) != labelled
    assert block_scores(anatomy, [(x, answers.unsqueeze(1))]) == labelled


def test_labels_at_every_position_and_ignored_ones():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = networks.NumberedNet.Block(4)
            self.head = nn.Linear(4, 5)

        def forward(self, x):
            return self.head(self.block(x))

    torch.manual_seed(0)
    net, x, y = Tagger(), torch.randn(3, 6, 4), torch.randint(0, 5, (3, 6))
    y[0, 2:], y[2] = -100, -100
    found = block_scores(analyze(net, as_batch(x)), [(x, y)])["block"]["taylor"]

    def loss(share):
        with torch.no_grad():
            stream = x + share * (net.block(x) - x)
            losses = nn.functional.cross_entropy(net.head(stream).transpose(1, 2), y, reduction="none")
        return float((losses[0].sum() / 2 + losses[1].sum() / 6) / 3)

    assert found == pytest.approx((loss(0.99) - loss(1.01)) / 0.02, rel=1e-2)


def test_the_limit_counts_samples():
    anatomy, (x, y) = analyze(cifar(), as_batch(images())), images()
    assert block_scores(anatomy, cut((x, y)), limit=6) == block_scores(anatomy, cut((x[:6], y[:6])))
    with pytest.raises(UsageError, match="limit = 0"):
        block_scores(anatomy, [x], limit=0)


def test_what_cannot_be_scored_is_refused():
    net = cifar()
    anatomy = analyze(net, as_batch(images()))
    with pytest.raises(DataError, match="no data to score on"):
        block_scores(anatomy, [])
    with pytest.raises(DataError, match="label 17 does not fit a model with 10 classes"):
        block_scores(anatomy, [(images()[0], torch.full((10,), 17))])
    with pytest.raises(NonFiniteError, match=r"NaN or Inf in block 'layer1\.0'"):
        block_scores(anatomy, [images()[0] * float("nan")])


def test_a_network_without_residual_blocks_has_none():
    assert block_scores(analyze(networks.PlainNet(), as_batch(images(channels=1))), [images(channels=1)]) == {}


@pytest.mark.parametrize("how", ["gradients off", "overwritten"])
def test_without_a_backward_the_other_scores_remain(how):
    class Closed(networks.NumberedNet):
        def forward(self, x):
            if how == "gradients off":
                with torch.no_grad():
                    return super().forward(x)
            x = self.block1(self.embed(x))
            answer = (x * x).sum(dim=1, keepdim=True) + self.head(x)
            x.zero_()
            return answer

    net, data = Closed(), vectors()
    anatomy = analyze(net, as_batch(data))
    with pytest.warns(UserWarning, match="no Taylor scores"):
        found = block_scores(anatomy, cut(data))
    assert set(found["block1"]) == set(SCORES) - {"taylor"}
    assert found["block1"]["largest_response"] == responses(anatomy, cut(data))["block1"].largest_branch


def test_a_block_that_overwrites_its_input():
    class Overwriting(networks.PreactBlock):
        def forward(self, x):
            x += self.conv2(self.conv1(x))
            return x

    class Copying(networks.PreactBlock):
        def forward(self, x):
            return x + self.conv2(self.conv1(x))

    data, found = images(channels=4), []
    for kind in (Overwriting, Copying):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(4, 4, 1), kind(4), kind(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
        )
        # Such code cannot be trained either: a convolution keeps its input for the backward.
        with pytest.warns(match="no Taylor scores") if kind is Overwriting else nullcontext():
            found.append(block_scores(analyze(net, as_batch(data)), cut(data)))
    for path in ("1", "2"):
        found[1][path].pop("taylor")
        assert found[0][path]["block_influence"] > 0.01
        assert found[0][path] == pytest.approx(found[1][path], rel=1e-5, abs=1e-6)


def test_a_block_that_is_called_twice_counts_twice():
    net, data = networks.randomised(networks.SharedNet()), (images(channels=4)[0], images()[1] % 2)
    found = block_scores(analyze(net, as_batch(data)), cut(data))
    apart = copy.deepcopy(net)
    apart.blocks[2] = copy.deepcopy(apart.blocks[0])
    single = block_scores(analyze(apart, as_batch(data)), cut(data))
    assert found["blocks.0"]["taylor"] == pytest.approx(single["blocks.0"]["taylor"] + single["blocks.2"]["taylor"])


def test_bfloat16():
    net, data = cifar(), images()
    exact = block_scores(analyze(net, as_batch(data)), cut(data))
    rough = block_scores(analyze(net.bfloat16(), as_batch(data[0].bfloat16())), cut((data[0].bfloat16(), data[1])))
    for path, scores in exact.items():
        assert scores["mean_response"] == pytest.approx(rough[path]["mean_response"], rel=0.05)
        assert scores["taylor"] == pytest.approx(rough[path]["taylor"], abs=0.2)


def test_a_language_model():
    library = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = library.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0
    )
    net, tokens = library.GPT2LMHeadModel(config).eval(), torch.randint(0, 50, (6, 8))
    data = [{"input_ids": part, "labels": part} for part in tokens.split(4)]
    anatomy = analyze(net, as_batch(data[0]))
    found = block_scores(anatomy, data)
    assert list(found) == [f"transformer.h.{number}" for number in range(3)]
    assert all(set(scores) == set(SCORES) for scores in found.values())


def test_the_cosine_of_a_real_network_orders_its_blocks():
    from shoal.scanning import removal_sweep
    from shoal.sources import load_data, load_model

    net, data = load_model("digits-resnet").model, load_data("digits")
    anatomy = analyze(net, data.example())
    found = block_scores(anatomy, data.test(), limit=256)
    candidates = [block.path for block in anatomy.chain.removable]
    damage = {one.path: one.damage for one in removal_sweep(anatomy, data.test(), candidates)}
    score = SCORES["block_influence"]
    values = {path: one["block_influence"] for path, one in found.items() if "block_influence" in one}
    rho, (low, _) = rank_correlation(values, damage, score.high_means)
    assert rho > 0.8
    assert low > 0.5


def test_values_need_targets_of_their_shape_for_a_loss():
    net, (x, _) = cifar(), images()
    anatomy = analyze(net, as_batch(x))
    with pytest.warns(UserWarning, match="targets of their shape"):
        without = block_scores(anatomy, [x])
    assert not any("taylor" in scores for scores in without.values())
    with torch.no_grad():
        targets = net(x) + 1.0
    assert all("taylor" in scores for scores in block_scores(anatomy, [(x, targets)]).values())
