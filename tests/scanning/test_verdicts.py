import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.measure import Accumulator
from shoal.record import ScannedLayer
from shoal.scanning.verdicts import ablation_of, channel_change_hypothesis, verdict_of


@pytest.mark.parametrize(
    ("interval", "centre", "verdict"),
    [
        ((-0.005, 0.008), 0.001, "trivial"),
        ((-0.010, 0.010), 0.0, "trivial"),
        ((0.012, 0.030), 0.02, "non-trivial"),
        ((-0.030, -0.012), -0.02, "non-trivial"),
        ((0.001, 0.019), 0.009, "undecided"),
        ((-0.005, 0.02), 0.015, "undecided"),
        ((0.001, 0.008), 0.004, "trivial"),
    ],
)
def test_verdicts_are_about_the_interval(interval, centre, verdict):
    assert verdict_of(interval, centre, 0.01) == verdict


def tally(n, lost, won):
    return Accumulator(
        n=n, labelled=n, single=n, right=n - lost, lost=lost, won=won, increase=0.1 * n, increase_squared=n
    )


@given(st.integers(2, 2000), st.integers(0, 100), st.integers(0, 100), st.integers(1, 500))
def test_a_familywise_verdict_never_decides_what_the_single_one_does_not(n, lost, won, comparisons):
    if lost + won > n:
        return
    found = ablation_of(tally(n, lost, won), tolerance=0.01, comparisons=comparisons)
    if found.verdict == "undecided":
        assert found.familywise == "undecided"
    assert found.top1_drop == pytest.approx((lost - won) / n)


def test_without_a_discordant_pair_enough_samples_decide():
    assert ablation_of(tally(600, 0, 0), tolerance=0.01, comparisons=1).verdict == "trivial"
    assert ablation_of(tally(100, 0, 0), tolerance=0.01, comparisons=1).verdict == "undecided"


@pytest.mark.parametrize("true_drop", [0.0, 0.01, 0.03])
def test_simulated_verdicts_keep_their_error_rate(true_drop):
    # Wrong are: trivial where the true drop lies outside the tolerance or on its edge; non-trivial where the drop is 0.
    rng = np.random.default_rng(0)
    n, discordant, trials, tolerance = 1000, 0.06, 800, 0.01
    lost_rate = (discordant + true_drop) / 2
    counts = rng.multinomial(n, [lost_rate, discordant - lost_rate, 1 - discordant], size=trials)
    verdicts = [
        ablation_of(tally(n, int(lost), int(won)), tolerance=tolerance, comparisons=1).verdict
        for lost, won, _ in counts
    ]
    wrong = "trivial" if true_drop >= tolerance else "non-trivial"
    assert verdicts.count(wrong) / trials <= 0.05
    if true_drop == 0.03:
        assert verdicts.count("non-trivial") / trials > 0.5


def layer(path, changes, verdict):
    figures = {"trivial": (600, 0, 0), "non-trivial": (600, 300, 0), "undecided": (50, 1, 1)}[verdict]
    ablation = ablation_of(tally(*figures), tolerance=0.01, comparisons=1)
    assert ablation.verdict == verdict
    return ScannedLayer(
        path=path,
        kind="Conv2d",
        block=None,
        in_channels=8,
        out_channels=16 if changes else 8,
        changes_channels=changes,
        params=1,
        ablations={"kernel": ablation},
    )


def test_the_channel_claim_is_tested_with_figures():
    layers = [layer(f"a{k}", True, "non-trivial") for k in range(6)]
    layers += [layer(f"b{k}", False, "trivial") for k in range(20)] + [layer("c", False, "undecided")]
    claim = channel_change_hypothesis(layers)
    assert claim.changing == {"trivial": 0, "undecided": 0, "non-trivial": 6}
    assert claim.others == {"trivial": 20, "undecided": 1, "non-trivial": 0}
    assert claim.p_value < 1e-3
    assert "6 of the 6" in claim.sentence
    assert "holds here" in claim.sentence


def test_the_opposite_and_nothing_are_said_as_they_are():
    layers = [layer(f"a{k}", True, "trivial") for k in range(10)]
    layers += [layer(f"b{k}", False, "non-trivial") for k in range(10)]
    assert "the opposite" in channel_change_hypothesis(layers).sentence
    even = [layer("a", True, "trivial"), layer("b", False, "trivial")]
    assert "no difference that these figures can show" in channel_change_hypothesis(even).sentence
    assert "nothing can be compared" in channel_change_hypothesis(even[:1]).sentence
    assert channel_change_hypothesis([]) is None
