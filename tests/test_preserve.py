import copy
import logging
import os
import random
import signal
import sys
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import networks
from shoal.batches import Batch, as_batch
from shoal.blocks import analyze, trace
from shoal.blocks.interception import intercept_additions
from shoal.epsilon import attach_gates_, epsilonize_, remove_gates_
from shoal.epsilon.recipes import recipe
from shoal.epsilon.trainer import EpsilonConfig as EpsilonSettings
from shoal.epsilon.trainer import EpsilonTrainer as EpsilonRun
from shoal.errors import ModelRaisedError, NonFiniteError
from shoal.measure import latency, predictions
from shoal.measure.cost import cost
from shoal.pipeline import MeasureConfig, compress
from shoal.plan import Plan, Remove
from shoal.preserve import check_finite, copied_arguments, evaluating, patched, swapped
from shoal.recover import DistillConfig, distill
from shoal.replace import ReplacementSpec, build_segments, find_spans, fit_all, recording, refit_
from shoal.scanning import ScanConfig, removal_sweep, responses, scan
from shoal.scanning.means import branch_means
from shoal.scanning.scores.collect import block_scores
from shoal.sources import Data
from shoal.sources.user_data import BatchSubset
from shoal.surgery import apply, certify, fold, input_specs, remove_blocks, signature_of, strict_identities


class Fragile(nn.Module):
    """Residual blocks, batch norm, dropout, a random draw in the forward; raises at its n-th call if asked to."""

    def __init__(self):
        super().__init__()
        self.net = networks.CifarResNet(2, classes=4, widths=(4, 6, 8))
        self.drop = nn.Dropout(0.5)
        self.calls = 0
        self.raises_at = None

    def forward(self, x):
        self.calls += 1
        noise = 0 * torch.rand(1)
        out = self.net.layer1(self.net.conv1(x))
        if self.calls == self.raises_at:
            raise ZeroDivisionError("on purpose, half-way")
        out = self.net.layer3(self.net.layer2(out))
        return self.net.linear(self.drop(out.mean(dim=(2, 3)))) + noise


# Made once, with a generator of its own: every change of the global random state is then the verb's.
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def loader():
    return [(IMAGES[:3], torch.tensor([0, 1, 2])), (IMAGES[3:], torch.tensor([0, 1, 3]))]


def example():
    return Batch((IMAGES[:2].clone(),))


def a_plan(net):
    twin = copy.deepcopy(net)
    twin.raises_at = None
    batch = example()
    return Plan(
        inputs=input_specs(batch),
        network=signature_of(twin, trace(twin, batch)),
        actions=[Remove(path="net.layer1.1")],
    )


def dissected(net):
    """An anatomy of `net` that was taken before it began to raise."""
    calls, raises_at = net.calls, net.raises_at
    net.raises_at = None
    anatomy = analyze(net, example())
    net.calls, net.raises_at = calls, raises_at
    return anatomy


def sweep(net):
    anatomy = dissected(net)
    removal_sweep(anatomy, loader(), list(anatomy.shortcut_modules))


def sweep_further(net):
    anatomy = dissected(net)
    first, *rest = anatomy.shortcut_modules
    removal_sweep(anatomy, loader(), rest, removed=[first])


def tap(net):
    anatomy = dissected(net)
    with intercept_additions(net, list(anatomy.chain), lambda path, unit, stream, branch: 0 * branch):
        call_all(net)


def call_all(net):
    with evaluating(net):
        for x, _ in loader():
            net(x)


def fit_stand_ins(net):
    anatomy = dissected(net)
    spans = find_spans(anatomy, build_segments(anatomy), 1)
    return fit_all(anatomy, [as_batch(item) for item in loader()], [ReplacementSpec(span, "linear") for span in spans])


def refitted(net, removed):
    """Refit a cut copy of the network to the network itself."""
    twin = copy.deepcopy(net)
    twin.raises_at = None
    student = remove_blocks(twin, example(), removed)
    student.raises_at = None
    refit_(dissected(net), student, [], [as_batch(item) for item in loader()], removed=removed)


def distilled(student, teacher):
    """Two steps; the one of the two that is given as None is a quiet copy of the other."""
    twin = copy.deepcopy(student if student is not None else teacher)
    twin.raises_at = None
    given = (student if student is not None else twin, teacher if teacher is not None else twin)
    distill(*given, loader(), validation=loader(), budget=2, config=DistillConfig(rate=0.01))


def record(net):
    with recording(dissected(net), ["net.layer1.1"]):
        call_all(net)


def gated(net):
    """Gates on, a forward of every mini-batch, gates off again, also where the network raises."""
    attach_gates_(dissected(net), 1.0)
    try:
        call_all(net)
    finally:
        remove_gates_(net)


def epsilonized(net):
    """Where the network raises while it is traced, no gate is left."""
    epsilonize_(net, example(), 1.0)
    remove_gates_(net)


def trained_with_gates(net):
    """Two epochs of two steps on a copy, which loses its blocks."""
    part = BatchSubset(loader(), None, None)
    plan = replace(recipe("digits"), epochs=2, freeze_after=1)
    run = EpsilonRun(net, Data("own", 4, False, (part, part, part)), EpsilonSettings(plan, 1e6))
    run.train()
    assert run.prunable.removed


def compressed(net, **goal):
    settings = MeasureConfig(images=6, latency_seconds=0.001, stand_ins=("linear",), longest=2)
    return compress(net, loader(), validation=loader(), eval=loader(), settings=settings, **goal)


def kept_in_a_folder(net):
    with tempfile.TemporaryDirectory() as folder:
        compressed(net, remove=1).save(folder, claimed=True)


# what is done with a network, and at how many calls of the network it can be made to raise
VERBS = {
    "trace": (lambda net: trace(net, example()), 2),
    "dissect": (lambda net: analyze(net, example()), 2),
    "strict_identities": (lambda net: strict_identities(analyze(net, example())), 2),
    "removal_sweep": (sweep, 8),
    "removal_sweep, some gone": (sweep_further, 8),
    "responses": (lambda net: responses(dissected(net), loader()), 2),
    "tapped": (tap, 2),
    "certify": (lambda net: certify(net, copy.deepcopy(net), loader()), 4),
    "certify, as the other": (lambda net: certify(copy.deepcopy(net), net, loader()), 4),
    "remove_blocks": (lambda net: remove_blocks(net, example(), ["net.layer1.1"]), 2),
    "apply": (lambda net: apply(net, a_plan(net)), 2),
    "predictions": (lambda net: predictions(net, loader()), 2),
    "latency": (lambda net: latency({"one": net}, example(), min_seconds=0.01, rounds=2), 3),
    "latency, channels last": (
        lambda net: latency({"one": net}, example(), min_seconds=0.01, rounds=2, channels_last=True),
        1,
    ),
    "cost": (lambda net: cost(net, example()), 1),
    "scan": (lambda net: scan(net, loader(), config=ScanConfig(scores=False)), 24),
    "scan, stacked": (lambda net: scan(net, loader(), config=ScanConfig(stack=3, layers=False, scores=False)), 8),
    "branch_means": (lambda net: branch_means(dissected(net), loader()), 2),
    "block_scores": (lambda net: block_scores(dissected(net), loader()), 3),
    "fold": (lambda net: fold(net, example()), 1),
    "fit_all": (fit_stand_ins, 2),
    "recording": (record, 2),
    "epsilonize_, remove_gates_": (epsilonized, 2),
    "attach_gates_": (gated, 2),
    "epsilon Run": (trained_with_gates, 1),
    "distil, as the student": (lambda net: distilled(net, None), 1),
    "distil, as the teacher": (lambda net: distilled(None, net), 1),
    "compress": (lambda net: compressed(net, remove=1), 2),
    "compress, by plan": (lambda net: compressed(net, macs=0.8, fold=True), 2),
    "compress, recovered": (lambda net: compressed(net, remove=1, recover="2"), 1),
    "compress, save": (kept_in_a_folder, 1),
    "refit_, as the teacher": (lambda net: refitted(net, ["net.layer2.1"]), 2),
}
HOOKS = ["_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks"]


def surroundings():
    """The state of the process that Shoal's verbs, and the libraries under them, could leave changed."""
    backends = torch.backends
    umask = os.umask(0o22)
    os.umask(umask)
    return {
        "threads": torch.get_num_threads(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), backends.cudnn.deterministic),
        "cudnn": (backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.allow_tf32),
        "mkldnn": backends.mkldnn.enabled,
        "fast path": backends.mha.get_fastpath_enabled(),
        "attention": (backends.cuda.flash_sdp_enabled(), backends.cuda.math_sdp_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()),
        "anomaly": torch.is_anomaly_enabled(),
        "device": torch.get_default_device(),
        "modes": torch.overrides._get_current_function_mode_stack(),
        "python random": random.getstate(),
        "numpy random": [str(part) for part in np.random.get_state()],
        "numpy errors": np.geterr(),
        "warnings": list(warnings.filters),
        "logging": (logging.root.manager.disable, logging.root.level, list(logging.root.handlers)),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)],
        "place": (Path.cwd(), umask, list(sys.path)),
        "environment": dict(os.environ),
        "streams": (sys.stdout, sys.stderr, sys.excepthook, sys.getrecursionlimit()),
        "plots": dict(sys.modules["matplotlib"].rcParams) if "matplotlib" in sys.modules else None,
    }


def fingerprint(net):
    """Everything a caller may rely on that is not the output itself."""
    modules = dict(net.named_modules())
    return {
        **surroundings(),
        "names": list(modules),
        "identities": {name: id(module) for name, module in modules.items()},
        "modes": {name: module.training for name, module in modules.items()},
        "hooks": {name: [list(getattr(module, kind)) for kind in HOOKS] for name, module in modules.items()},
        "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
        "forwards": [name for name, module in modules.items() if "forward" in vars(module)],
        "state": {name: tensor.clone() for name, tensor in net.state_dict().items()},
        "versions": {name: tensor._version for name, tensor in net.named_parameters()},
        "gradients": {name: p.requires_grad for name, p in net.named_parameters()},
        "no gradient yet": all(p.grad is None for p in net.parameters()),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "default dtype": torch.get_default_dtype(),
        "layouts": {name: tensor.stride() for name, tensor in net.named_parameters()},
    }


def assert_as_before(net, before, random_state):
    after = fingerprint(net)
    state, known = after.pop("state"), before.pop("state")
    assert after == before
    assert list(state) == list(known)
    assert all(torch.equal(state[name], known[name]) for name in known)
    assert torch.equal(torch.get_rng_state(), random_state)


def prepared(seed=0):
    torch.manual_seed(seed)
    net = Fragile()
    networks.randomised(net)
    net.train()
    net.net.layer2.eval()  # a mixed mode, module by module: a careless .train() at the end would show
    net.net.layer3[0].bn1.eval()
    net.net.conv1.weight.requires_grad_(False)
    net.register_forward_hook(lambda module, args, output: None)
    return net


@pytest.fixture(scope="module", autouse=True)
def imported():
    """Libraries set filters of warnings and variables of the environment when they are imported: once, before all."""
    for verb in ("trace", "cost", "compress, save"):
        VERBS[verb][0](prepared())


@pytest.mark.parametrize("verb", VERBS)
def test_a_network_comes_back_as_it_was(verb):
    net = prepared()
    before, random_state = fingerprint(net), torch.get_rng_state()
    VERBS[verb][0](net)
    assert_as_before(net, before, random_state)


@pytest.mark.parametrize(("verb", "call"), [(verb, call) for verb in VERBS for call in range(VERBS[verb][1])])
def test_a_network_that_raises_comes_back_as_it_was(verb, call):
    net = prepared()
    net.raises_at = call + 1
    before, random_state = fingerprint(net), torch.get_rng_state()
    raised = None
    try:
        VERBS[verb][0](net)
    except (ModelRaisedError, ZeroDivisionError) as error:
        raised = error
    if raised is None:  # dissect tries the network without its blocks: where that fails it looks further
        assert net.calls > call, "the verb does not call the network that often: shorten the table"
    elif verb not in (
        "tapped",
        "recording",
        "latency",
        "attach_gates_",
    ):  # the caller's own call; calls inside the timer
        assert isinstance(raised.__cause__, ZeroDivisionError)
    assert_as_before(net, before, random_state)


def test_evaluating_stands_still_and_restores():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    net[1].eval()
    mean = net[0].running_mean.clone()
    with evaluating(net) as same:
        assert same is net
        assert not any(module.training for module in net.modules())
        assert not net(torch.randn(4, 3)).requires_grad
    assert [module.training for module in net.modules()] == [True, True, False]
    assert torch.equal(net[0].running_mean, mean)
    assert torch.is_grad_enabled()


def test_forwards_come_back_also_one_that_was_patched_before():
    net = nn.Sequential(nn.Identity(), nn.Identity())
    mine = lambda x: x + 1
    net[1].forward = mine

    def inside():
        with patched({net[0]: lambda x: x * 2, net[1]: lambda x: x * 3}):
            assert net(torch.ones(1)) == 6
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        inside()
    assert net(torch.ones(1)) == 2
    assert "forward" not in vars(net[0])
    assert net[1].forward is mine


def test_modules_come_back_in_their_places():
    net = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh(), nn.Sigmoid()))
    before = [(name, id(module)) for name, module in net.named_modules()]

    def inside():
        with swapped(net, {"0": nn.Identity(), "1.0": nn.Identity()}):
            assert [type(one).__name__ for one in net[1]] == ["Identity", "Sigmoid"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        inside()
    assert [(name, id(module)) for name, module in net.named_modules()] == before
    with pytest.raises(AttributeError), swapped(net, {"0": nn.Identity(), "2": nn.Identity()}):
        pass
    assert [(name, id(module)) for name, module in net.named_modules()] == before


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_and_statistics_that_are_not_finite_are_named(bad):
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    check_finite(net)
    net[1].running_var[1] = bad
    with pytest.raises(NonFiniteError, match=r"1 of 2 values of '1\.running_var'"):
        check_finite(net)


def test_a_copy_of_arguments_shares_nothing_that_can_be_written_into():
    class State:
        def __init__(self):
            self.keys = [torch.ones(2)]

    class NoCopies:
        def __deepcopy__(self, memo):
            raise RuntimeError("there is one of me")

    shared, module, single = {"a": torch.zeros(3)}, nn.Linear(2, 2), NoCopies()
    loop: list = [1]
    loop.append(loop)
    value = ((torch.ones(2), shared, State()), {"again": shared, "m": module, "single": [single], "loop": loop})
    (tensor, first, state), named = copied_arguments(value)
    assert torch.equal(tensor, torch.ones(2))
    assert first is named["again"]
    assert first is not shared
    assert named["m"] is module
    assert named["single"][0] is single
    assert named["loop"][1] is named["loop"]
    first["a"] += 1
    state.keys[0] += 1
    assert torch.equal(shared["a"], torch.zeros(3))
    assert torch.equal(value[0][2].keys[0], torch.ones(2))
