import html
import math
import re
from itertools import pairwise

import pytest
from handmade import bare_record, language_record, make_blocks, make_record
from planned import planned_record
from reading import Page
from recovered import make_recovery, recovered_record, removed_and_recovered

from shoal.record import MetricComparison, OutputsRead, Record
from shoal.report.compress import block_table, key_figures, render
from shoal.report.html import KeyFigure

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


def evil_record() -> Record:
    blocks = [
        block.model_copy(update={"path": f"{EVIL}{i}", "kind": EVIL, "reason": EVIL, "removable": False})
        for i, block in enumerate(make_blocks())
    ]
    full = make_record()
    return make_record(
        blocks=blocks,
        removed=[block.path for block in blocks if block.action == "removed"],
        command=EVIL,
        model=EVIL,
        data=EVIL,
        message=EVIL,
        warnings=[EVIL],
        goal={EVIL: EVIL},
        created=EVIL,
        certificate=full.certificate.model_copy(update={"where": EVIL, "premises": [EVIL], "why_not_identical": EVIL}),
        machine=full.machine.model_copy(update={"processor": EVIL, "shoal": EVIL, "libraries": {EVIL: EVIL}}),
    )


def evil_plan() -> Record:
    plan = planned_record(latency_source=EVIL)
    blocks = [block.model_copy(update={"path": f"{EVIL}{i}", "kind": EVIL}) for i, block in enumerate(plan.blocks)]
    update = {"removed": [EVIL + "1"], "replaced": [[EVIL + "4", EVIL + "5"], [EVIL]], "kinds": ["map", EVIL]}
    front = [point.model_copy(update=update) for point in plan.planning.front]
    return plan.model_copy(update={"blocks": blocks, "planning": plan.planning.model_copy(update={"front": front})})


def evil_recovery() -> Record:
    return make_record(recovery=make_recovery(kept=EVIL, optimizer=EVIL, budget=EVIL, rates_tried={EVIL: 1.0}))


def plan_of_a_plain_chain() -> Record:
    return planned_record().model_copy(update={"blocks": []})


@pytest.mark.parametrize(
    "make",
    [
        make_record,
        bare_record,
        language_record,
        evil_record,
        planned_record,
        evil_plan,
        plan_of_a_plain_chain,
        recovered_record,
        removed_and_recovered,
        evil_recovery,
    ],
)
def test_the_page_is_well_formed_and_holds_its_record(make) -> None:
    record = make()
    page = Page(render(record))
    assert Record.model_validate_json(page.record) == record
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in page.tags if tag in {"a", "use"}]
    assert all(link.startswith("#") and link[1:] in ids for link in links)


def test_names_that_are_markup_are_inert() -> None:
    plain = Page(render(make_record()))
    for page in (Page(render(make())) for make in (evil_record, evil_plan, evil_recovery)):
        assert len(page.all("script")) == len(plain.all("script")) == 2
        assert not page.all("img")
        assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


@pytest.mark.parametrize("make", [make_record, planned_record, recovered_record])
def test_nothing_is_loaded_from_anywhere(make) -> None:
    text = render(make())
    page = Page(text)
    assert not page.all("link") + page.all("img") + page.all("iframe")
    assert not [attributes for _, attributes in page.tags if "src" in attributes]
    assert not re.search(r"""(src|href|action)\s*=\s*["']?\s*(https?:)?//""", text)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_the_policy_forbids_the_network(record: Record) -> None:
    (policy,) = [one["content"] for one in Page(render(record)).all("meta") if "http-equiv" in one]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'")


@pytest.mark.parametrize(("make", "tables"), [(make_record, 4), (planned_record, 5), (recovered_record, 6)])
def test_tables_and_pictures_can_be_read_aloud(make, tables: int) -> None:
    page = Page(render(make()))
    assert len(page.all("table")) == len(page.all("caption")) == tables
    assert all(header.get("scope") in {"col", "row"} for header in page.all("th"))
    drawn = [one for one in page.all("svg") if one.get("aria-hidden") != "true"]
    assert drawn
    assert all(one["role"] in {"img", "group"} and one["aria-labelledby"] for one in drawn)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_the_plan_is_only_there_where_there_is_one(record: Record) -> None:
    assert 'id="plan"' not in render(record)
    assert "on the front, the sum" not in render(record)
    assert 'href="#plan">The plan</a>' in render(planned_record())


def test_recovery_is_only_there_where_there_was_one_and_says_what_the_plan_does_not_know() -> None:
    assert 'id="recovery"' not in render(planned_record())
    assert "before recovery" not in render(planned_record())
    text = render(recovered_record())
    assert 'href="#recovery">Recovery</a>' in text
    assert text.index('<section id="plan"') < text.index('<section id="recovery"') < text.index('<section id="chain"')
    assert "in the end, before recovery." in text
    assert text.count("Divergence on validation by step") == 2


def test_a_recovery_without_looks_is_told_without_a_picture() -> None:
    text = render(removed_and_recovered())
    assert "60.0&nbsp;% less than" in text.replace("\u00a0", "&nbsp;")
    assert "Divergence on validation by step" not in text


def test_every_plan_has_its_card_and_one_is_open() -> None:
    page = Page(render(planned_record()))
    cards = [one for one in page.all("article") if "plan" in one["class"].split()]
    assert [one["id"] for one in cards] == [f"plan-{n}" for n in range(1, 25)]
    assert [one["id"] for one in cards if "chosen" in one["class"]] == ["plan-8"]
    visible = " ".join("".join(page.visible).split())
    for expected in (
        "shoal compress --from DIR --pick 1 --out NEW",
        "shoal compress --from DIR --pick 24 --out NEW",
        "stages.1.2 to stages.1.5 (4 in a row) by conv3",
        "+1.7 %",
        "Damage of the chosen plan: 0.610 nats as built",
    ):
        assert expected in visible


def test_spans_that_are_no_blocks_are_named() -> None:
    visible = "".join(Page(render(plan_of_a_plain_chain())).visible)
    assert "stages.1.2 to stages.1.5 (4 in a row) by conv3" in visible


def test_where_latencies_come_from_is_said() -> None:
    assert "source: a roofline" in render(planned_record(latency_source="a roofline"))


def test_the_pictures_of_a_hundred_blocks_stay_small() -> None:
    assert len(render(planned_record(34))) < 600_000


def without_labels() -> Record:
    full = make_record()
    quality = {"top1": None, "top1_interval": None, "loss": None}
    drop = {"top1_drop": None, "top1_drop_interval": None, "p_value": None, "lost": None, "won": None}
    return make_record(
        original=full.original.model_copy(update={"quality": full.original.quality.model_copy(update=quality)}),
        compressed=full.compressed.model_copy(update={"quality": full.compressed.quality.model_copy(update=quality)}),
        comparison=full.comparison.model_copy(update=drop),
        validation=full.validation.model_copy(update=drop),
        steps=[step.model_copy(update={"validation": step.validation.model_copy(update=drop)}) for step in full.steps],
    )


def not_finite() -> Record:
    full = make_record()
    blocks = [
        block.model_copy(update={"removal_kl": math.nan, "removal_kl_interval": (math.nan, math.nan)})
        for block in full.blocks
    ]
    steps = [step.model_copy(update={"kl": math.nan, "kl_interval": (math.nan, math.inf)}) for step in full.steps]
    return full.model_copy(update={"blocks": blocks, "steps": steps})


def plan_without_numbers() -> Record:
    full = planned_record()
    front = [point.model_copy(update={"damage": math.nan, "latency_ms": math.inf}) for point in full.planning.front]
    nothing = {"latency_measured_ms": math.nan, "damage_measured": math.nan, "latency_guessed_ms": math.nan}
    rounds = [one.model_copy(update=nothing) for one in full.planning.rounds]
    changes = {"front": front, "rounds": rounds, "damage_refitted": math.nan, "damage_final": math.nan}
    return full.model_copy(update={"planning": full.planning.model_copy(update=changes)})


def recovery_without_numbers() -> Record:
    looks = [{"step": step, "seconds": 1.0, "rate": 0.1, "loss": math.nan} for step in range(3)]
    return recovered_record(curve=looks, divergence_after=math.nan, divergence_before=math.nan, rates_tried={"1": None})


@pytest.mark.parametrize(
    "make",
    [bare_record, language_record, without_labels, not_finite, plan_without_numbers, recovery_without_numbers],
)
def test_missing_numbers_are_never_shown_as_such(make) -> None:
    visible = " ".join(Page(render(make())).visible)
    assert not re.search(r"\b(None|nan|inf|True|False)\b", visible)


def test_a_missed_goal_and_warnings_stand_first() -> None:
    text = render(make_record(reached=False, message="Only 6 could go."))
    assert text.index("The goal was not reached") < text.index("Only 400 test images") < text.index("Key figures")


def test_what_was_measured_is_on_the_page(record: Record) -> None:
    visible = " ".join(Page(render(record)).visible)
    for expected in (
        record.command,
        "Some Processor 4 GHz",
        "2.8.0",
        "97.1 – 99.5 %",
        "Tango",
        "shoal.load(",
    ):
        assert expected in visible


def test_a_language_model_shows_perplexity_and_what_its_interval_rests_on() -> None:
    visible = " ".join(" ".join(Page(render(language_record())).visible).split())
    for expected in ("24.7", "22.0 – 27.9", "4,088 tokens", "1.07 – 1.12", "treat the 8 sequences, not the tokens"):
        assert expected in visible
    assert "Top-1" not in visible
    assert "no labels" not in visible


def test_four_figures(record: Record) -> None:
    assert [(one.name, one.value) for one in key_figures(record)] == [
        ("Blocks", "13 of 27"),
        ("Top-1, test", "98.5 %"),
        ("Speed, batch 128", "1.92 ×"),
        ("MACs", "60.1 M"),
    ]


def test_what_was_not_measured_is_left_out(bare: Record) -> None:
    assert [one.name for one in key_figures(bare)] == ["Blocks", "Agreement, test", "MACs"]


def test_a_language_model_shows_its_perplexity() -> None:
    assert key_figures(language_record())[1] == KeyFigure("Perplexity, test", "24.7", "9.9 % more, was 22.5")


def test_every_row_has_a_cell_for_every_column() -> None:
    table = block_table(make_blocks())
    assert len(table.rows) == 27
    assert all(len(line.entries) == len(table.columns) - 1 for line in table.rows)


def test_a_block_that_must_stay_says_why() -> None:
    table = block_table(make_blocks())
    line = next(line for line in table.rows if line.head == "stages.1.0")
    assert (line.entries[1].text, line.entries[1].detail) == ("kept", "not removable: the shortcut is a projection")
    assert line.entries[2].sort is None


def test_no_blocks_no_table() -> None:
    assert block_table([]) is None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("mean squared error relative to the variance of the original's output", "mean squared error / variance"),
        ("one minus the cosine with the original's output", "one minus the cosine"),
        ("share of elements that differ from the original's", "share of elements that differ"),
        ("what MyDamage returns", "what MyDamage returns"),
    ],
)
def test_damage_that_is_no_divergence_of_classes_is_in_no_nats(damage, words):
    """Restoration, embedding and detection were shown in nats."""
    outputs = OutputsRead(outputs=[], damage=damage)
    for record in (make_record(), planned_record(), recovered_record()):
        comparison = record.comparison.model_copy(update={"agreement": None, "loss_increase": None})
        page = render(record.model_copy(update={"outputs": outputs, "comparison": comparison, "validation": None}))
        visible = re.sub(r"<style.*?</style>|<script.*?</script>", "", page, flags=re.DOTALL)
        assert words in html.unescape(visible)
        told = [line for line in visible.splitlines() if re.search(r"\bnats\b|\bKL\b", line)]
        assert not [line for line in told if "cross-entropy" not in line], told[:3]


def test_figures_against_labels_are_figures_with_labels():
    """A network of images has no accuracy, but its decibels are against the targets."""
    record = bare_record()
    note = "The data has no labels"
    assert note in render(record)
    psnr = {"name": "psnr", "label": "PSNR", "unit": "dB", "against": "labels", "n": 4}
    figures = {"original": 24.0, "original_interval": (23, 25), "compressed": 23.5, "compressed_interval": (22, 25)}
    metric = MetricComparison(**psnr, **figures, drop=0.5, drop_interval=(0.1, 0.9))
    comparison = record.comparison.model_copy(update={"metrics": [metric]})
    assert note not in render(record.model_copy(update={"comparison": comparison}))


def test_pixels_are_no_tokens():
    record = language_record()
    maps = {"perplexity": None, "perplexity_interval": None}
    original, compressed = (
        network.model_copy(update={"quality": network.quality.model_copy(update=maps)})
        for network in (record.original, record.compressed)
    )
    page = render(record.model_copy(update={"original": original, "compressed": compressed}))
    visible = re.sub(r"<style.*?</style>|<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search("perplexity|sequence|token", visible, re.IGNORECASE)
    assert "per pixel, nats" in visible
    assert "the 8 samples, not their pixels" in visible


def test_the_drop_on_validation_is_that_of_the_metric_that_decides():
    record = make_record()
    psnr = {"name": "psnr", "label": "PSNR", "unit": "dB", "against": "labels", "n": 4}
    figures = {"original": 24.0, "compressed": 23.5, "compressed_interval": (22, 25)}
    metric = MetricComparison(**psnr, **figures, drop=0.5, drop_interval=(0.1, 0.9))
    judged = record.validation.model_copy(update={"metrics": [metric], "top1_drop": None})
    steps = [step.model_copy(update={"validation": judged}) for step in record.steps]
    page = render(record.model_copy(update={"steps": steps, "validation": judged}))
    assert page.count("PSNR 0.500 dB worse</td>") == len(steps)
    assert "dB of PSNR lost; dashed: limit 1" in page
