import pytest
import torch
from given import VGG, data, dissected, fitted_on, mlp, randn, spans

import networks
from shoal.plan import Replacement
from shoal.replace import REPLACEMENTS, ReplacementSpec, build_replacement, fit_all, recording, with_shortcut
from shoal.replace.kinds import replacement_type

SOURCES = {
    "images": (lambda: networks.CifarResNet(2, widths=(8, 8, 16)), (3, 8, 8)),
    "pre-activation": (lambda: networks.PreactNet(16, 2), (1, 6, 6)),
    "tokens": (lambda: networks.NumberedNet(8), (5, 4)),
    "features": (lambda: mlp(32, norm=True), (4,)),
    "plain images": (lambda: VGG(8, norm=True), (3, 8, 8)),
}


@pytest.fixture(scope="module", params=SOURCES)
def anatomy(request):
    build_, shape = SOURCES[request.param]
    return dissected(build_, *shape)


def every(anatomy, longest=3):
    return [
        ReplacementSpec(span, kind)
        for span in spans(anatomy, longest).values()
        for kind in REPLACEMENTS
        if REPLACEMENTS[kind].supports(span)
    ]


@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_every_kind_says_what_it_needs_costs_and_comes_from(kind):
    rule = REPLACEMENTS[kind]
    assert rule.requirement
    assert rule.macs_note
    assert rule.source
    assert kind.startswith(rule.family)


def test_what_suits_a_span_can_be_built_again_from_plain_data_and_returns_its_shape(anatomy):
    for wanted in every(anatomy):
        stand_in = wanted.stand_in
        again = Replacement.model_validate_json(stand_in.model_dump_json())
        assert again == stand_in
        assert (stand_in.in_channels, stand_in.out_channels) == (wanted.span.in_channels, wanted.span.out_channels)
        assert (stand_in.tail, stand_in.layout) == (wanted.span.tail, wanted.span.layout)
        assert type(replacement_type(again)) is type(wanted.type)
        module = build_replacement(again, torch.zeros(1))
        assert module(torch.randn(2, *wanted.span.in_shape)).shape == (2, *wanted.span.out_shape)


def test_every_kind_is_used_somewhere():
    found = {one.kind for build_, shape in SOURCES.values() for one in every(dissected(build_, *shape))}
    assert found == set(REPLACEMENTS)


def test_what_is_fitted_is_what_is_said_of_it(anatomy):
    """R2 from the moments alone is that of the module on the rows; the shortcut form computes the same."""
    wanted = every(anatomy, 2)
    shape = next(iter(anatomy.trace.values[one].shape[1:] for one in anatomy.trace.inputs))
    batches = data(20, *shape)
    fitted = fit_all(anatomy, batches, wanted, rows_per_unknown=1e9)
    for one in fitted[:: 1 + len(fitted) // 12]:
        x, y = _rows(anatomy, one.span, batches)
        module = torch.nn.Sequential(*one.module.children())[0]
        with torch.no_grad():
            made = module(x) if not one.stand_in.shortcut else x + module(x)
        channel = 1 if one.span.layout == "channels_first" else -1
        made, y = made.movedim(channel, -1).flatten(0, -2), y.movedim(channel, -1).flatten(0, -2)
        explained = 1 - float((made - y).square().sum() / (y - y.mean(0)).square().sum())
        assert one.r2_fit == pytest.approx(explained, abs=1e-8), one.span.name + one.kind
        if one.span.keeps_shape and one.kind != "identity":
            [beside] = fit_all(anatomy, batches, [ReplacementSpec(one.span, one.kind, True)], rows_per_unknown=1e9)
            assert beside.stand_in == with_shortcut(one.stand_in)
            given = randn(2, *one.span.in_shape)
            torch.testing.assert_close(beside.module(given), one.module(given), rtol=0, atol=1e-8)


def _rows(anatomy, span, batches):
    """What enters the span and its sum, of the samples that are not held out."""
    entering, sums = [], []
    with torch.no_grad(), recording(anatomy, [span.paths[0], span.end]) as seen:
        for batch in batches:
            anatomy.model(*batch.args)
            entering.append(seen.inputs[span.paths[0]])
            sums.append(seen.sums[span.end])
    return fitted_on(entering), fitted_on(sums)


def test_only_convolutions_are_dilated():
    span = spans(dissected(_dilated, 3, 9, 9))[1, 2]
    assert span.dilation == 2
    assert {kind: REPLACEMENTS[kind].spec(span).dilation for kind in ("conv3", "linear", "lowrank1/4")} == {
        "conv3": 2,
        "linear": 1,
        "lowrank1/4": 1,
    }


def _dilated():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, padding=2, dilation=2)
    )
