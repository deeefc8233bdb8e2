import copy
import json

import pytest
import torch
from torch import nn

import halves
import networks
from elsewhere import Elsewhere
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import FolderError, NotReachedError, SurgeryError, UnknownBlockError, UsageError
from shoal.measure import compare, kl_per_sample, predictions
from shoal.pipeline import NullJournal, greedy, judging
from shoal.pipeline.goals import Blocks, Budget, ExactOnly, MaxDrop, ParetoPoint, RemoveBlocks, parse_goal
from shoal.pipeline.greedy import GreedyRemoval, blocks_disabled
from shoal.record import Comparison, metric_drop
from shoal.scanning import divergence
from shoal.surgery import remove_blocks
from shoal.workers import LocalWorkers


def images(n=16, seed=0):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def preact(depth=4, seed=0):
    torch.manual_seed(seed)
    return networks.randomised(networks.PreactNet(6, depth))


class Memory:
    """A journal in memory that counts and forgets nothing, kept as JSON like the real one."""

    def __init__(self, lines=()):
        self.lines = list(lines)
        self.added = []

    def append(self, line):
        self.added.append(json.loads(json.dumps(line)))

    def measured(self):
        return [*self.lines, *self.added]


def chooser(model, data=None, validation=None, goal=None, **more):
    data = data or [
        Batch((images(),), target=torch.arange(16) % 10),
        Batch((images(seed=1),), target=torch.arange(16) % 10),
    ]
    return GreedyRemoval(analyze(model, data[0]), goal or RemoveBlocks(2), data, validation or data, **more)


def test_a_goal_is_exactly_one():
    both = [{"remove": 1, "max_drop": 1.0}, {"exact": True, "blocks": ("a",)}, {"max_drop": 0.0, "exact": True}]
    both += [
        {"pick": 1, "remove": 1},
        {"pick": 1, "depth": 1},
        {"max_drop": 1.0, "macs": 0.5},
    ]
    for asked in both:
        with pytest.raises(
            UsageError,
            match=r"give exactly one of remove, max_drop, blocks, exact, .*/depth, pick\n.*max_drop, of 1.0",
        ):
            parse_goal(asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"remove": 0}, "remove is 0, expected at least 1"),
        ({"remove": -3}, "remove is -3, expected at least 1"),
        ({"max_drop": -0.5}, "max_drop is -0.5, expected 0 to 100"),
        ({"max_drop": 101.0}, "max_drop is 101.0, expected 0 to 100"),
        ({"max_drop": float("nan")}, "max_drop is nan, expected a number"),
        ({"blocks": ()}, "blocks names no block"),
        ({"remove": 1, "replace": True}, "replace goes with max_drop or a budget"),
    ],
)
def test_goals_out_of_range(asked, message):
    with pytest.raises(UsageError, match=message):
        parse_goal(asked)


def test_a_goal_as_plain_data():
    assert RemoveBlocks(2).to_dict() == {"remove": 2}
    assert MaxDrop(0.0).to_dict() == {"max_drop": 0.0}
    assert ExactOnly(include=("a*",), exclude=("b",)).to_dict() == {
        "exact": True,
        "include": ["a*"],
        "exclude": ["b"],
    }
    assert Blocks(("a", "b")).to_dict() == {"blocks": ["a", "b"]}
    assert MaxDrop(1.0, allow_replacement=True).to_dict() == {"max_drop": 1.0, "replace": True}
    assert Budget(depth=3, latency="12ms").to_dict() == {"latency": "12ms", "depth": 3}
    assert ParetoPoint(4).to_dict() == {"pick": 4}


@pytest.mark.parametrize(
    ("goal", "by_plan"),
    [
        (RemoveBlocks(1), False),
        (MaxDrop(1.0), False),
        (ExactOnly(), False),
        (MaxDrop(1.0, allow_replacement=True), True),
        (Budget(params=0.5), True),
        (Budget(depth=0), True),
        (ParetoPoint(1), True),
    ],
)
def test_what_needs_a_plan(goal, by_plan):
    assert goal.by_plan is by_plan


def test_a_journal_that_keeps_nothing():
    journal = NullJournal()
    journal.append({"kind": "step"})
    assert journal.measured() == []


def kl_of_cut(model, data, paths):
    """Mean KL(original || cut) on a physically cut copy: the slow and plain way."""
    cut = remove_blocks(model, data[0], paths).eval()
    parts = []
    with torch.no_grad():
        for batch in data:
            original = torch.log_softmax(model(*batch.args), 1)
            parts.append(kl_per_sample(original, cut(*batch.args)))
    return float(torch.cat(parts).mean())


def error_of_cut(model, data, gone):
    """The squared error as a share of the variance of the original's output."""
    cut = remove_blocks(model, data[0], gone)
    with torch.no_grad():
        before, after = (torch.cat([net(*batch.args) for batch in data]).double() for net in (model, cut))
    return float((before - after).square().mean() / before.var(0, correction=0).mean())


@pytest.mark.parametrize("make", [lambda: preact(5), lambda: networks.randomised(networks.CifarResNet(2))])
def test_every_step_takes_the_best_of_a_brute_force_sweep(make):
    torch.manual_seed(1)
    model = make()
    data = [Batch((images(seed=seed),)) for seed in (0, 1)]
    if isinstance(model, networks.CifarResNet):
        data = [Batch((one.args[0].repeat(1, 3, 2, 2),)) for one in data]
    count = 4 if isinstance(model, networks.PreactNet) else 3
    one = chooser(model, data, goal=RemoveBlocks(count))
    found = one.choose()
    gone = []
    for step in found.steps:
        left = [block.path for block in one.graph.chain.removable if block.path not in gone]
        brute = {path: error_of_cut(model, data, [*gone, path]) for path in left}
        assert step.candidates == len(left)
        assert step.n == 32
        assert step.removed == min(brute, key=brute.get)
        assert step.kl == pytest.approx(brute[step.removed], abs=1e-6)
        assert step.kl_interval[0] <= step.kl <= step.kl_interval[1]
        gone.append(step.removed)
    assert found.removed == [path for path in one.graph.chain.paths if path in gone]
    assert len(found.steps) == count
    assert found.reached


def test_every_step_is_judged_with_all_that_is_gone():
    model = preact()
    seen = [Batch((images(seed=7),), target=torch.arange(16) % 10)]
    found = chooser(model, validation=seen, goal=RemoveBlocks(3)).choose()
    gone = []
    for step in found.steps:
        gone.append(step.removed)
        cut = remove_blocks(model, seen[0], gone).eval()
        expected = compare(predictions(model, seen), predictions(cut, seen), "validation")
        assert step.validation.kl == pytest.approx(expected.kl, abs=1e-6)
        assert step.validation.agreement == expected.agreement


class Rivals(nn.Module):
    """Blocks 0 and 1 undo each other's absence badly: each alone is the cheapest to lose, both together are not."""

    class Shift(nn.Module):
        def __init__(self, shift):
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(shift))
            self.scale = nn.Linear(4, 4)
            nn.init.zeros_(self.scale.weight)
            nn.init.zeros_(self.scale.bias)

        def forward(self, x):
            return x + (self.scale(x) + self.shift)

    def __init__(self):
        super().__init__()
        ways = [[3.0, 0, 0, 0], [3.0, 0, 0, 0], [0, 0.5, 0, 0]]
        self.blocks = nn.ModuleList(self.Shift(way) for way in ways)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        first = nn.functional.relu(3 - x[:, :1])  # zero while at least one of the first two is there
        return torch.cat([first * 4, x[:, 1:]], 1)


def test_the_two_cheapest_together_are_not_the_cheapest_pair():
    torch.manual_seed(0)
    data = [Batch((0.1 * torch.rand(16, 4),))]
    model = Rivals().eval()
    found = chooser(model, data).choose()
    alone = sorted(found.worths, key=lambda path: found.worths[path].damage)
    assert set(alone[:2]) == {"blocks.0", "blocks.1"}
    assert "blocks.2" in found.removed
    assert found.steps[1].kl < error_of_cut(model, data, alone[:2])


def test_remove_takes_exactly_that_many():
    for count in (1, 2, 4):
        found = chooser(preact(), goal=RemoveBlocks(count)).choose()
        assert (len(found.removed), found.reached) == (count, True)
        assert found.message == (f"{count} blocks removed" if count > 1 else "1 block removed")
        assert found.validation == found.steps[-1].validation


def test_more_than_there_are_keeps_what_could_be_reached():
    found = chooser(preact(3), goal=RemoveBlocks(7)).choose()
    assert found.removed == ["blocks.0", "blocks.1", "blocks.2"]
    assert not found.reached
    assert found.message == "3 blocks removed of the 7 asked for; no other can be removed"


def test_include_and_exclude_bound_the_choice():
    found = chooser(preact(), goal=RemoveBlocks(4, include=("blocks.[01]",), exclude=("blocks.1",))).choose()
    assert found.removed == ["blocks.0"]
    assert not found.reached
    assert set(found.worths) == {f"blocks.{n}" for n in range(4)}
    with pytest.raises(UnknownBlockError, match="blok"):
        chooser(preact(), goal=RemoveBlocks(1, include=("blok*",))).choose()
    with pytest.raises(NotReachedError, match="no removable block is left by --include and --exclude"):
        chooser(preact(), goal=RemoveBlocks(1, exclude=("blocks.*",))).choose()


def test_a_plain_chain_has_nothing_to_remove():
    with pytest.raises(NotReachedError, match=r"\n.*`shoal trace` gives the reason"):
        chooser(networks.PlainNet().eval(), goal=RemoveBlocks(1)).choose()


def test_named_blocks_go_in_the_order_of_the_chain():
    found = chooser(preact(), goal=Blocks(("blocks.3", "blocks.1"))).choose()
    assert found.removed == ["blocks.1", "blocks.3"]
    assert found.reached
    assert found.message == "2 blocks removed as named"
    assert found.steps == []
    assert set(found.worths) == {"blocks.1", "blocks.3"}
    with pytest.raises(UnknownBlockError, match=r"no residual block called 'blocks.9'\n.*Did you mean"):
        chooser(preact(), goal=Blocks(("blocks.9",))).choose()
    with pytest.raises(SurgeryError, match="is named twice"):
        chooser(preact(), goal=Blocks(("blocks.1", "blocks.1"))).choose()
    with pytest.raises(SurgeryError, match="cannot be removed"):
        chooser(networks.SharedNet().eval(), [Batch((torch.randn(2, 4, 8, 8),))], goal=Blocks(("blocks.0",))).choose()


def idle(model, *indices):
    for index in indices:
        last = model.blocks[index].conv2
        with torch.no_grad():
            last.weight.zero_()
            last.bias.zero_()
    return model


def test_exact_takes_only_what_is_proved():
    found = chooser(idle(preact(), 1, 3), goal=ExactOnly()).choose()
    assert found.removed == ["blocks.1", "blocks.3"]
    assert found.message == "2 blocks removed, each proved to do nothing"
    assert found.ratios["blocks.1"] == 0
    assert found.worths["blocks.1"].damage == 0
    narrowed = chooser(idle(preact(), 1, 3), goal=ExactOnly(exclude=("blocks.1",))).choose()
    assert narrowed.removed == ["blocks.3"]


def test_exact_without_identities_names_the_five_nearest():
    model = preact(7)
    for index, scale in enumerate([1, 1, 1e-3, 1e-4, 1e-5, 1e-2, 1e-1]):
        with torch.no_grad():
            model.blocks[index].conv2.weight.mul_(scale)
            model.blocks[index].conv2.bias.mul_(scale)
    with pytest.raises(NotReachedError, match=r"no block is a strict identity; the nearest by max") as caught:
        chooser(model, goal=ExactOnly()).choose()
    nearest = caught.value.message.partition(": ")[2].split(", ")
    assert [one.split(" ")[0] for one in nearest] == [f"blocks.{n}" for n in (4, 3, 2, 5, 6)]
    ratios = [float(one.split("(")[1].rstrip(")")) for one in nearest]
    assert ratios == sorted(ratios)
    assert all(ratio > 0 for ratio in ratios)


def scripted(monkeypatch, drops):
    """Validation drops that follow a script, by how many blocks are gone."""
    calls = iter(drops)

    def compare(_original, _other, split):
        drop = next(calls)
        return Comparison(
            split=split,
            n=32,
            agreement=1 - abs(drop),
            agreement_interval=(0, 1),
            kl=0,
            kl_interval=(0, 0),
            top1_drop=drop,
        )

    monkeypatch.setattr(judging, "compare", compare)


@pytest.mark.parametrize(
    ("drops", "limit", "count", "steps"),
    [
        ([0.0, 0.0, 0.0, 0.0], 1.0, 4, 4),
        ([0.005, 0.02, 0.03, 0.0], 1.0, 1, 3),  # two beyond in a row end the search
        ([0.005, 0.02, 0.009, 0.5], 1.0, 3, 4),  # one beyond is forgiven
        ([0.01, 0.02, 0.02], 1.0, 1, 3),  # the limit itself is within
        ([-0.01, 0.0, 0.001, 0.001], 0.0, 2, 4),
        ([0.5, 0.6], 1.0, 0, 2),
    ],
)
def test_max_drop_keeps_the_longest_within(monkeypatch, drops, limit, count, steps):
    scripted(monkeypatch, drops)
    found = chooser(preact(), goal=MaxDrop(limit)).choose()
    assert (len(found.removed), len(found.steps)) == (count, steps)
    assert set(found.removed) == {step.removed for step in found.steps[:count]}
    assert found.reached is (count > 0)
    if count:
        assert (
            found.message
            == f"{count} block{'s' * (count > 1)} removed within {limit:g} point{'s' * (limit != 1)} on validation"
        )
        assert found.validation.top1_drop == drops[count - 1]
    else:
        assert found.message == "no block can go within 1 point: the first already costs 50.00"
        assert found.validation is None


def test_without_labels_the_drop_is_disagreement():
    common = {"split": "v", "n": 4, "agreement": 0.75, "agreement_interval": (0, 1), "kl": 0, "kl_interval": (0, 0)}
    assert metric_drop(Comparison(**common)) == 0.25
    assert metric_drop(Comparison(**common, top1_drop=-0.5)) == -0.5


def test_a_damage_of_ones_own():
    def keeps_block_two(original, other, batch):
        return -divergence(original, other, batch)

    best = chooser(preact(), goal=RemoveBlocks(1)).choose()
    worst = chooser(preact(), goal=RemoveBlocks(1), damage=keeps_block_two).choose()
    assert worst.removed == [max(best.worths, key=lambda path: best.worths[path].damage)]


@pytest.mark.parametrize(
    "goal", [RemoveBlocks(3), MaxDrop(20.0), ExactOnly(), Blocks(["blocks.1", "blocks.2"]), RemoveBlocks(2, "unit")]
)
def test_workers_choose_the_very_same_removals_by_the_very_same_figures(goal):
    model = preact(depth=6)
    idle(model, 4)
    here, there = (chooser(model, goal=goal, workers=workers).choose() for workers in (LocalWorkers(), Elsewhere()))
    assert there.worths == here.worths
    assert [step.model_copy(update={"seconds": 0}) for step in there.steps] == [
        step.model_copy(update={"seconds": 0}) for step in here.steps
    ]
    assert (there.removed, there.ratios, there.message) == (here.removed, here.ratios, here.message)


def test_a_resumed_choice_recomputes_no_step(monkeypatch):
    whole = Memory()
    expected = chooser(preact(), goal=RemoveBlocks(3), journal=whole).choose()
    assert [line["kind"] for line in whole.added] == ["worths", "step", "step", "step"]
    swept = []
    measure = greedy.RemovalSweeps.measure

    def counted(sweeps, loader, candidates, removed, on_progress):
        swept.append(removed)
        return measure(sweeps, loader, candidates, removed, on_progress)

    monkeypatch.setattr(greedy.RemovalSweeps, "measure", counted)
    for kept, expected_sweeps in ((0, 3), (1, 2), (2, 2), (3, 1), (4, 0)):
        swept.clear()
        journal = Memory(whole.added[:kept])
        found = chooser(preact(), goal=RemoveBlocks(3), journal=journal).choose()
        assert len(swept) == expected_sweeps
        assert len(journal.added) == 4 - kept
        assert found.removed == expected.removed
        assert found.worths == expected.worths
        assert found.ratios == expected.ratios
        assert [step.model_copy(update={"seconds": 0}) for step in found.steps] == [
            step.model_copy(update={"seconds": 0}) for step in expected.steps
        ]


def test_a_journal_that_holds_a_step_twice_is_said_to_be_damaged():
    journal = Memory()
    chooser(preact(), goal=RemoveBlocks(1), journal=journal).choose()
    with pytest.raises(FolderError, match="the journal of the run is damaged: it holds a step twice"):
        chooser(preact(), goal=RemoveBlocks(3), journal=Memory([*journal.added, journal.added[-1]])).choose()


def test_a_single_sample_survives_the_journal():
    data = [Batch((images(1),))]
    journal = Memory()
    expected = chooser(preact(), data, goal=RemoveBlocks(2), journal=journal).choose()
    found = chooser(preact(), data, goal=RemoveBlocks(2), journal=Memory(journal.added)).choose()
    assert found == expected


def test_progress_counts_to_its_total():
    said = []
    chooser(preact(3), goal=RemoveBlocks(2), progress=lambda *one: said.append(one)).choose()
    stages = list(dict.fromkeys(stage for stage, _, _ in said))
    assert stages == ["what each block is worth", "step 2: 2 blocks tried"]
    for stage in stages:
        counts = [(done, total) for name, done, total in said if name == stage]
        assert counts == sorted(set(counts))
        assert counts[-1] == (6, 6) if stage == stages[0] else counts[-1] == (4, 4)


def test_blocks_taken_out_for_the_time_being_come_back():
    model = preact()
    one = chooser(model)
    x = images()
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        whole = model(x)
        with blocks_disabled(one.graph, ["blocks.1", "blocks.2"]) as cut:
            shorter = cut(x)
        expected = remove_blocks(model, Batch((x,)), ["blocks.1", "blocks.2"])(x)
        assert torch.equal(shorter, expected)
        with pytest.raises(ZeroDivisionError), blocks_disabled(one.graph, ["blocks.1"]):
            raise ZeroDivisionError
        assert torch.equal(model(x), whole)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all("forward" not in vars(module) for module in model.modules())


def halved(goal, model=None, **more):
    data = [Batch((halves.samples(8, seed),), target=torch.arange(8) % 3) for seed in range(2)]
    return chooser(model or halves.Halves().eval(), data, goal=goal, **more)


def test_with_the_grain_of_units_each_step_takes_the_best_half():
    one = halved(RemoveBlocks(4, grain="unit"))
    found = one.choose()
    gone = []
    for step in found.steps:
        left = [f"blocks.{i}#{k}" for i in range(3) for k in range(2) if f"blocks.{i}#{k}" not in gone]
        brute = {name: kl_of_cut(one.graph.model, one.calibration, [*gone, name]) for name in left}
        assert step.candidates == len(left)
        assert step.removed == min(brute, key=brute.get)
        assert step.kl == pytest.approx(brute[step.removed], abs=1e-6)
        gone.append(step.removed)
    assert len(found.steps) == 4
    assert found.reached
    pairs = [path for path in one.graph.chain.paths if {f"{path}#0", f"{path}#1"} <= set(gone)]
    units = [name for name in gone if name.partition("#")[0] not in pairs]
    assert {action.name for action in found.removals} == {*pairs, *units}
    assert {path: found.units_gone(path) for path in one.graph.chain.paths} == {
        path: [int(name[-1]) for name in sorted(units) if name.startswith(path)] for path in one.graph.chain.paths
    }


def test_units_are_counted_and_all_of_them_are_the_end():
    found = halved(RemoveBlocks(9, grain="unit")).choose()
    assert len(found.steps) == 6
    assert not found.reached
    assert found.removed == ["blocks.0", "blocks.1", "blocks.2"]
    assert found.message == "3 blocks removed of the 9 asked for; no other can be removed"
    one = halved(RemoveBlocks(1, grain="unit")).choose()
    assert one.message == "1 unit removed"
    assert one.action_of(one.removed[0].partition("#")[0]) == "kept"


def test_units_are_included_and_excluded_by_their_blocks():
    found = halved(RemoveBlocks(2, grain="unit", include=("blocks.[01]",), exclude=("blocks.0",))).choose()
    assert {step.removed for step in found.steps} == {"blocks.1#0", "blocks.1#1"}


def test_single_unit_blocks_go_whole_beside_units():
    found = chooser(preact(3), goal=RemoveBlocks(2, grain="unit")).choose()
    assert found.removed == chooser(preact(3), goal=RemoveBlocks(2)).choose().removed


@pytest.mark.parametrize("asked", [{"exact": True}, {"blocks": ("a",)}])
def test_units_are_neither_proved_nor_named_by_their_grain(asked):
    with pytest.raises(UsageError, match="grain 'unit' goes with remove, max_drop, a budget or pick"):
        parse_goal({"grain": "unit", **asked})


def test_a_grain_nobody_knows():
    with pytest.raises(UsageError, match="grain is 'half', expected block or unit"):
        RemoveBlocks(1, grain="half")
    assert RemoveBlocks(1, grain="unit").to_dict() == {"remove": 1, "grain": "unit"}


def test_named_units_are_removed():
    found = halved(Blocks(("blocks.2#1", "blocks.0", "blocks.1#0", "blocks.1#1"))).choose()
    assert found.removed == ["blocks.0", "blocks.1", "blocks.2#1"]
    assert found.message == "2 blocks and 1 unit removed as named"


def test_norms_behind_additions_go_where_that_does_less_damage():
    torch.manual_seed(0)
    model = networks.PostNormNet().eval()
    with torch.no_grad():  # a norm that does much: without its block it had better go too
        model.encoder.layers[1].norm2.weight.mul_(-3)
        model.encoder.layers[2].norm2.weight.mul_(-3)
    data = [Batch((torch.randn(8, 5, 8, generator=torch.Generator().manual_seed(seed)),)) for seed in range(2)]
    found = chooser(model, data, goal=RemoveBlocks(1)).choose()
    tried = {name: error_of_cut(model, data, [name]) for name in found.worths}
    assert set(tried) == {f"encoder.layers.{number}{more}" for number in (1, 2) for more in ("", "+norms")}
    best = min(tried, key=tried.get)
    assert found.steps[0].removed == best
    assert found.removed == [best.removesuffix("+norms")]
    assert found.bare == ([found.removed[0]] if best.endswith("+norms") else [])
    assert found.removals[0].name == best
    assert found.worths[best].damage == pytest.approx(tried[best], abs=1e-6)


def test_a_block_goes_once_with_its_norms_or_without():
    torch.manual_seed(0)
    data = [Batch((torch.randn(8, 5, 8),))]
    found = chooser(networks.PostNormNet().eval(), data, goal=RemoveBlocks(5)).choose()
    assert found.removed == ["encoder.layers.1", "encoder.layers.2"]
    assert [step.candidates for step in found.steps] == [4, 2]
