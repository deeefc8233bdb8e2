"""The race of plans: who goes on, who is out, what is kept, what it costs, and that what recovers best is chosen."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import shoal
import stopwatch
from elsewhere import Elsewhere
from shoal.errors import DataError, NonFiniteError, OutOfMemoryError, UsageError
from shoal.pipeline import CompressConfig, RecoveryConfig, plan_race
from shoal.pipeline.plan_measure import MeasuredPlan
from shoal.pipeline.plan_race import SHARE, Climber, Contender, Ladder, Race, remaining, settings_after, since_race
from shoal.pipeline.race_record import Track
from shoal.pipeline.race_store import FOLDER, RaceStore, Shortlist, key_of
from shoal.plan import Edge, Path, Remove
from shoal.record import PlanRace
from shoal.recover import DistillConfig, TrainingBudget
from shoal.recover.rungs import RungDistillation, RungResult, RungTiming

pytestmark = pytest.mark.heavy
FREE = RungTiming(0.0, 0.0)


@pytest.mark.parametrize(
    ("plans", "rungs", "sizes", "steps"),
    [
        (16, [25, 50, 100, 200], [16, 8, 4, 2], 1000),
        (8, [25, 50, 100], [8, 4, 2], 400),
        (5, [25, 50, 100], [5, 3, 2], 300),
        (3, [25, 50], [3, 2], 125),
        (2, [25], [2], 50),
        (1, [], [], 0),
    ],
)
def test_rungs_and_who_climbs_them(plans, rungs, sizes, steps):
    ladder = Ladder(plans)
    assert (ladder.rungs, ladder.sizes, ladder.steps) == (rungs, sizes, steps)
    assert [ladder.looks(rung) for rung in rungs] == [[12, 25], [50], [100], [200]][: len(rungs)]


@pytest.mark.parametrize(("budget", "plans"), [(10000, 16), (9999, 15), (4000, 8), (1300, 3), (500, 2), (499, None)])
def test_a_race_takes_a_tenth_of_the_steps_at_most(budget, plans):
    ladder = Ladder.largest(16, TrainingBudget(steps=budget), FREE)
    assert (ladder and ladder.plans) == plans
    assert ladder is None or ladder.steps <= SHARE * budget


def test_a_race_takes_a_tenth_of_the_time_at_most():
    timing = RungTiming(student=2.0, step=0.1)
    ladder = Ladder.largest(16, TrainingBudget(seconds=2000), timing)
    assert (16 + sum(ladder.sizes)) * 2.0 + ladder.steps * 0.1 <= 200
    assert ladder.plans == 16
    assert Ladder.largest(16, TrainingBudget(seconds=200), timing).plans < 8
    assert Ladder.largest(16, TrainingBudget(seconds=50), timing) is None
    assert Ladder.largest(4, TrainingBudget(seconds=20000), timing).plans == 4


def plan(index, damage, origin="solver"):
    path = Path(edges=(index,), damage=damage, latency_ms=1.0, macs=1.0, params=1.0, depth=1)
    return MeasuredPlan(path, 0.6, 0.6, 2 * damage, damage, origin)


EDGES = [Edge(start=0, stop=1, action="keep", damage=0, latency_ms=1, macs=1, params=1, depth=1)]


class Builder:
    """Networks that are only names."""

    def __init__(self):
        self.built = []

    def build(self, path):
        self.built.append(path.edges[0])
        torch.manual_seed(0)
        return nn.Linear(1, 1)

    network = build

    def actions(self, path):
        return [Remove(path=f"block{path.edges[0]}")]


class Task:
    """A recovery whose students are as far from the original after a rung as a table says."""

    def __init__(self, table, config, before=9.0):
        self.table, self.config, self.before = table, config, before
        self.climbs, self.progress = [], lambda *args: None
        self.alive, self.most_alive = set(), 0

    def paused(self, student, actions, folder, total):
        index = int(actions[0].path.removeprefix("block"))
        marker = folder / "student"

        def climb(until):
            self.climbs.append((index, until))
            marker.touch()
            self.most_alive = max(self.most_alive, len(list(folder.parent.glob("*/student"))))
            outcome = self.table[index][until]
            if isinstance(outcome, BaseException):
                raise outcome
            return RungResult(self.before, outcome, until, 0.5, 0.02, 36)

        def result(at):
            assert marker.exists()
            kept = SimpleNamespace(kept_step=at if self.table[index][at] < self.before else 0)
            return SimpleNamespace(model=nn.Linear(index + 1, 1), recovery=kept)

        timing = RungTiming(0.0, 0.01)
        return SimpleNamespace(climb=climb, result=result, timing=lambda: timing)


def race_of(table, damages, *, folder=None, race=16, required=True, budget=3000, task=None):
    config = RecoveryConfig(budget, folder=folder, race=race, required=required)
    task = task or Task(table, config)
    task.config = config
    track, builder = Race(task, {"what": "this"}), Builder()
    plans = [plan(index, damage) for index, damage in enumerate(damages)]
    shortlist = Shortlist(plans, plans, steps=track.steps or 300)
    for entrant in plans:
        track.store.keep_start(entrant.path, builder.build(entrant.path))
    track.store.begin(shortlist, EDGES)
    return track, shortlist, builder, task


def flat(*values):
    """So far after every rung."""
    return {index: dict.fromkeys((12, 25, 50, 100, 200), value) for index, value in enumerate(values)}


def test_the_plan_that_recovers_best_wins_however_bad_it_was_before():
    track, shortlist, builder, task = race_of(flat(4, 3, 2, 1), [0.1, 0.2, 0.3, 50.0])
    outcome = track.run(shortlist, builder)
    assert outcome.plan is shortlist.plans[3]
    assert outcome.network.in_features == 4  # what it has learned
    race = outcome.record
    assert race.winner.plan == 4
    assert race.tau == pytest.approx(1.0)
    assert race.tau_damage == pytest.approx(-1.0)
    assert task.climbs == [*((index, look) for index in range(4) for look in (12, 25)), (3, 50), (2, 50)]
    assert [one.outcome for one in race.contenders] == ["eliminated", "eliminated", "eliminated", "won"]
    assert [one.final_rank for one in race.contenders] == [4, 3, 2, 1]
    assert (race.steps, race.rungs, race.share, race.budget) == (150, [12, 25, 50], 0.05, "3000 steps")
    assert race.seconds == pytest.approx(5.0)
    assert "kept: plan 4 (solver), number 4 by damage before" in outcome.notes[-1]


def test_what_falls_faster_wins_though_it_is_behind_by_then():
    """As plain removals do: 4 to 2 in as many steps as the leader takes from 1 to 0.9."""
    table = {0: {12: 1.0, 25: 0.9}, 1: {12: 4.0, 25: 2.0}}
    track, shortlist, builder, _ = race_of(table, [1, 9])
    race = track.run(shortlist, builder).record
    assert race.winner.plan == 2
    assert race.contenders[1].divergences == [4.0, 2.0]
    assert race.contenders[1].expected[1] < race.contenders[0].expected[1] < 0.9
    assert [one.ranks for one in race.contenders] == [[1, 2], [2, 1]]


def test_the_students_of_a_race_are_at_the_beginning_of_the_whole_recovery():
    totals = []
    track, shortlist, builder, task = race_of(flat(2, 1), [1, 2])
    paused = task.paused
    task.paused = lambda *args: totals.append(args[-1]) or paused(*args)
    track.run(shortlist, builder)
    assert set(totals) == {3000}


def test_ranks_that_change_lower_tau():
    table = flat(1, 2, 3, 4)
    table[1][50], table[0][50] = 0.5, 0.9
    track, shortlist, builder, _ = race_of(table, [1, 2, 3, 4])
    race = track.run(shortlist, builder).record
    assert race.winner.plan == 2
    assert [one.ranks for one in race.contenders] == [[1, 1, 2], [2, 2, 1], [3, 3], [4, 4]]
    assert race.tau == pytest.approx(2 / 3)


def test_a_race_of_one_rung_has_no_tau():
    track, shortlist, builder, _ = race_of(flat(2, 1), [1, 2])
    race = track.run(shortlist, builder).record
    assert (race.tau, race.winner.plan, race.rungs) == (None, 2, [12, 25])


@pytest.mark.parametrize("failure", [math.inf, NonFiniteError("NaN in block 'x'", ""), OutOfMemoryError("too big")])
def test_a_contender_that_fails_is_out_but_named(failure):
    table = flat(3, 2, 1, 4)
    table[2][25] = failure
    track, shortlist, builder, task = race_of(table, [1, 2, 3, 4], required=False)
    race = track.run(shortlist, builder).record
    assert race.winner.plan == 2
    lost = race.contenders[2]
    assert lost.outcome == ("diverged" if failure == math.inf else "failed")
    assert lost.final_rank == 4
    assert lost.divergences == ([3 - 2, None] if failure == math.inf else [1.0])
    assert failure == math.inf or failure.message in lost.note
    assert (2, 50) not in task.climbs


def test_one_that_diverges_late_loses_to_those_that_did_not():
    table = flat(1, 2, 3, 4)
    table[0][50] = math.inf
    track, shortlist, builder, _ = race_of(table, [1, 2, 3, 4])
    race = track.run(shortlist, builder).record
    assert race.winner.plan == 2
    assert race.contenders[0].divergences == [1.0, 1.0, None]
    assert race.contenders[0].outcome == "diverged"


def test_where_all_diverge_the_best_by_damage_is_taken_as_it_was():
    track, shortlist, builder, _ = race_of(flat(*[math.inf] * 3), [3, 1, 2])
    outcome = track.run(shortlist, builder)
    assert outcome.plan is shortlist.plans[1]
    assert outcome.network is None
    assert not outcome.record.continued


def test_a_winner_that_learned_nothing_begins_anew():
    track, shortlist, builder, _ = race_of(flat(12, 11), [1, 2])
    outcome = track.run(shortlist, builder)
    assert outcome.plan is shortlist.plans[1]
    assert outcome.network is None
    assert not outcome.record.continued


def test_a_fault_of_the_data_is_raised_where_recovery_was_asked_for():
    table = flat(1, 2)
    table[0][25] = DataError("no data", "")
    track, shortlist, builder, _ = race_of(table, [1, 2])
    with pytest.raises(DataError, match="no data"):
        track.run(shortlist, builder)


def test_students_that_are_out_are_removed_at_once(tmp_path):
    values = list(range(16, 0, -1))
    track, shortlist, builder, task = race_of(flat(*values), values, folder=tmp_path)
    track.run(shortlist, builder)
    assert task.most_alive <= 9  # half of them, and the one that is learning
    [winner] = [place.name for place in (tmp_path / FOLDER).iterdir() if place.is_dir()]
    assert winner == key_of(shortlist.plans[15].path)


def test_without_a_folder_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    track, shortlist, builder, _ = race_of(flat(1, 2), [1, 2])
    assert len(list(tmp_path.iterdir())) == 1
    track.run(shortlist, builder)
    del track
    assert list(tmp_path.iterdir()) == []


class KilledError(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("at", [(0, 12), (2, 25), (3, 50), (2, 50)])
def test_finished_rungs_are_not_measured_again(tmp_path, at):
    table = flat(4, 3, 2, 1)
    whole = race_of(table, [1, 2, 3, 4])
    expected = whole[0].run(*whole[1:3]).record
    killed = {index: dict(rungs) for index, rungs in table.items()}
    killed[at[0]][at[1]] = KilledError()
    track, shortlist, builder, task = race_of(killed, [1, 2, 3, 4], folder=tmp_path)
    with pytest.raises(KilledError):
        track.run(shortlist, builder)
    config = RecoveryConfig(3000, folder=tmp_path)
    again = Task(table, config)
    resumed = Race(again, {"what": "this"})
    saved = resumed.store.shortlist(EDGES)
    assert saved == shortlist
    found = resumed.run(saved, Builder()).record
    assert found == expected
    assert not set(again.climbs) & (set(task.climbs) - {at})
    assert again.climbs[0] == at


def test_the_race_of_something_else_is_refused(tmp_path):
    race_of(flat(1, 2), [1, 2], folder=tmp_path)
    with pytest.raises(UsageError, match=r"holds the race of another network.*what was 'this', now 'that'"):
        RaceStore(tmp_path, {"what": "that"})


def test_a_race_for_other_tables_begins_anew(tmp_path):
    track, *_ = race_of(flat(1, 2), [1, 2], folder=tmp_path)
    other = [EDGES[0].model_copy(update={"kind": "other"})]
    assert RaceStore(tmp_path, {"what": "this"}).shortlist(other) is None
    dearer = [EDGES[0].model_copy(update={"latency_ms": 7.0, "damage": 1.0})]
    assert RaceStore(tmp_path, {"what": "this"}).shortlist(dearer) is not None
    track.store.begin(Shortlist([plan(5, 1.0)], [plan(5, 1.0)]), other)
    assert [place.name for place in (tmp_path / FOLDER).iterdir()] == ["race.jsonl"]


def test_too_small_a_budget_is_noted():
    entrant, builder = plan(0, 1.0), Builder()
    track, *_ = race_of(flat(1, 2), [1, 2], budget=100)
    assert track.size(entrant, builder) == 0
    assert track.notes[0].startswith("no race of plans: it takes at most a tenth of the recovery budget of 100 steps")
    track, *_ = race_of(flat(1, 2), [1, 2], budget=1300)
    assert track.size(entrant, builder) == 3
    assert track.notes == ["a race of 3 plans, not 16: it takes at most a tenth of the recovery budget of 1300 steps"]
    track, *_ = race_of(flat(1, 2), [1, 2], budget=10000)
    assert track.size(entrant, builder) == 16
    assert track.notes == []
    track, *_ = race_of(flat(1, 2), [1, 2], budget="33s")
    assert track.size(entrant, builder) == 6  # 325 steps of a hundredth of a second each: a tenth of 33 seconds
    assert "33 seconds" in track.notes[0]


def test_a_race_that_takes_too_long_ends_with_the_rung():
    track, shortlist, builder, _ = race_of(flat(4, 3, 2, 1), [1, 2, 3, 4], budget="3s")
    race = track.run(shortlist, builder).record  # half a second a look and plan
    assert race.rungs == [12, 25]
    assert race.winner.plan == 4
    assert "ended early" in track.notes[0]
    assert remaining(TrainingBudget(seconds=3), race).seconds == pytest.approx(1.5)  # not less than half


def test_what_a_race_leaves_of_the_budget():
    track, shortlist, builder, _ = race_of(flat(4, 3, 2, 1), [1, 2, 3, 4])
    race = track.run(shortlist, builder).record
    assert remaining(TrainingBudget(steps=3000), race) == TrainingBudget(steps=2850)
    assert remaining(TrainingBudget(seconds=60), race) == TrainingBudget(seconds=55)
    assert remaining(TrainingBudget(steps=7), None) == TrainingBudget(steps=7)
    assert PlanRace.model_validate_json(race.model_dump_json()) == race


def test_what_was_learned_in_a_race_needs_no_second_warm_up():
    track, shortlist, builder, _ = race_of(flat(4, 3), [1, 2])
    race = track.run(shortlist, builder).record
    settings = DistillConfig(warm_up=0.1, features=8.0)
    assert settings_after(settings, race) == replace(settings, warm_up=0.0)
    assert settings_after(settings, race.model_copy(update={"continued": False})) == settings
    assert settings_after(settings, None) == settings


# The whole way, with small students


@pytest.fixture(autouse=True, scope="module")
def _small():
    """A clock that never changes."""
    with pytest.MonkeyPatch.context() as patch:
        stopwatch.install(patch)
        yield


SETTINGS = CompressConfig(images=36, validation_images=36, latency_seconds=0.001, stand_ins=("conv3",), longest=2)


def compressed(budget=60, workers=None, **more):
    from test_recovery import confident, data

    recovery = RecoveryConfig(budget, DistillConfig(rate=0.02, looks=2), **more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_race, "FIRST_RUNG", 3)
        patch.setattr(plan_race, "SHARE", 1 / 3)  # room for several plans in few steps
        return shoal.compress(
            confident(),
            data(),
            shoal.Budget(macs=0.4),
            validation=data(50),
            recovery=recovery,
            config=replace(SETTINGS, workers=workers),
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupted, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    return compressed(folder=folder), folder


@pytest.mark.slow
def test_a_race_is_the_default_wherever_a_budget_is_recovered(whole):
    found, folder = whole
    race, recovery = found.record.planning.race, found.record.recovery
    assert len(race.contenders) >= 3
    assert {one.origin for one in race.contenders} >= {"solver", "removals only"}
    assert 0 < race.steps <= 20
    assert recovery.steps == 60 - race.steps
    assert race.summary in found.record.notes
    [chosen] = [index for index, built in enumerate(found.record.planning.rounds, 1) if built.chosen]
    assert chosen == race.winner.plan
    assert recovery.divergence_before == pytest.approx(race.winner.divergence_before) or not race.continued
    assert recovery.divergence_after <= recovery.divergence_before
    assert not (folder / FOLDER).exists()


@pytest.mark.slow
def test_workers_race_to_the_very_same_student(whole):
    expected, found = whole[0], compressed(workers=Elsewhere())
    races = [result.record.planning.race for result in (expected, found)]
    assert [contender.divergences for contender in races[0].contenders] == [
        contender.divergences for contender in races[1].contenders
    ]
    assert found.plan == expected.plan
    states = expected.model.state_dict(), found.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("error", [NonFiniteError("not finite", ""), OutOfMemoryError("too big")])
def test_what_fails_at_a_worker_is_out_but_named(error):
    def climb(until):
        raise error

    task = SimpleNamespace(paused=lambda *args: SimpleNamespace(climb=climb))
    contender = Contender(nn.Linear(1, 1), [], None)
    assert Climber(task, 25)((0, 25), contender) == (error, b"")
    race, shortlist, builder, _ = race_of(flat(2, 1), [0.1, 0.2], required=False)
    tracks = [Track(plan, 3000) for plan in shortlist.contenders]
    race._climb_elsewhere("race", tracks, 25, builder, lambda tasks: [((1, 25), (error, b""))])
    assert not tracks[0].is_out
    assert tracks[1].is_out
    assert error.message in tracks[1].failure


def test_no_race_where_it_is_switched_off():
    record = compressed(12, race=0).record
    assert record.planning.race is None
    assert not any("race" in note for note in record.notes)
    assert record.recovery.steps == 12


@pytest.mark.slow
def test_a_killed_race_resumes_with_the_very_same_students(whole, tmp_path, monkeypatch):
    expected, _ = whole
    step, taken, resumed = RungDistillation.train_step, [], []

    def interrupted(self):
        if len(taken) == 11:
            raise KilledError
        taken.append(self.state.step)
        return step(self)

    monkeypatch.setattr(RungDistillation, "train_step", interrupted)
    with pytest.raises(KilledError):
        compressed(folder=tmp_path)
    monkeypatch.setattr(RungDistillation, "train_step", lambda self: resumed.append(1) or step(self))
    monkeypatch.setattr("shoal.pipeline.plan_pool.PlanPool.fill", lambda *args: pytest.fail("planned again"))
    found = compressed(folder=tmp_path)
    assert found.plan == expected.plan
    races = [one.record.planning.race for one in (expected, found)]
    assert [one.divergences for one in races[0].contenders] == [one.divergences for one in races[1].contenders]
    assert races[0].steps <= 11 + len(resumed) <= races[0].steps + 3  # at most the rung that was cut short, again
    states = expected.model.state_dict(), found.model.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
def test_the_plan_that_recovers_best_is_chosen_of_real_plans(monkeypatch):
    """Nearest after the same steps: it is chosen."""
    evaluate = RungDistillation.evaluate_average

    def favours_removals(self):
        return evaluate(self) * (1.0 if self.replaced else 1e-3)

    monkeypatch.setattr(RungDistillation, "evaluate_average", favours_removals)
    found = compressed()
    race = found.record.planning.race
    assert race.winner.origin != "solver"
    assert not found.record.replaced


def test_since_a_race_is_since_before_it():
    track, shortlist, builder, _ = race_of(flat(2, 1), [1, 2])
    race = track.run(shortlist, builder).record
    recovery = SimpleNamespace(model_copy=lambda update: update)
    assert since_race(recovery, race) == {"divergence_before": 9.0}
    assert since_race(recovery, race.model_copy(update={"continued": False})) is recovery
    assert since_race(recovery, None) is recovery


def test_the_former_name_still_works():
    with pytest.warns(DeprecationWarning, match="try_plans=...\\) is called race now"):
        config = RecoveryConfig(20, try_plans=3)
    assert config.race == 3
    assert RecoveryConfig(20).race == 16
    with pytest.warns(DeprecationWarning, match="race now"), pytest.raises(UsageError, match="try_plans is -1"):
        RecoveryConfig("5m", try_plans=-1)
    with pytest.raises(UsageError, match="race is -1"):
        RecoveryConfig("5m", race=-1)
