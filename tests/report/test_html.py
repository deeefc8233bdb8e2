import math
import re
from itertools import pairwise

import pytest
from handmade import bare_record, make_blocks, make_record
from reading import Page

from shoal.record import Record
from shoal.report.html import render

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


def evil_record() -> Record:
    blocks = [
        block.model_copy(update={"path": f"{EVIL}{i}", "kind": EVIL, "reason": EVIL, "removable": False})
        for i, block in enumerate(make_blocks())
    ]
    full = make_record()
    return make_record(
        blocks=blocks,
        removed=[block.path for block in blocks if block.fate == "removed"],
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


@pytest.mark.parametrize("make", [make_record, bare_record, evil_record])
def test_the_page_is_well_formed_and_holds_its_record(make) -> None:
    record = make()
    page = Page(render(record))
    assert Record.model_validate_json(page.record) == record
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for attributes in page.all("a")]
    assert all(link.startswith("#") and link[1:] in ids for link in links)


def test_names_that_are_markup_are_inert() -> None:
    page, plain = Page(render(evil_record())), Page(render(make_record()))
    assert len(page.all("script")) == len(plain.all("script")) == 2
    assert not page.all("img")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_nothing_is_loaded_from_anywhere(record: Record) -> None:
    text = render(record)
    page = Page(text)
    assert not page.all("link") + page.all("img") + page.all("iframe")
    assert not [attributes for _, attributes in page.tags if "src" in attributes]
    assert not re.search(r"""(src|href|action)\s*=\s*["']?\s*(https?:)?//""", text)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_the_policy_forbids_the_network(record: Record) -> None:
    (policy,) = [one["content"] for one in Page(render(record)).all("meta") if "http-equiv" in one]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'")


def test_tables_and_pictures_can_be_read_aloud(record: Record) -> None:
    page = Page(render(record))
    assert len(page.all("table")) == len(page.all("caption")) == 4
    assert all(header.get("scope") in {"col", "row"} for header in page.all("th"))
    drawn = [one for one in page.all("svg") if one.get("aria-hidden") != "true"]
    assert drawn
    assert all(one["role"] == "img" and one["aria-labelledby"] for one in drawn)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


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
        block.model_copy(update={"worth_kl": math.nan, "worth_kl_interval": (math.nan, math.nan)})
        for block in full.blocks
    ]
    steps = [step.model_copy(update={"kl": math.nan, "kl_interval": (math.nan, math.inf)}) for step in full.steps]
    return full.model_copy(update={"blocks": blocks, "steps": steps})


@pytest.mark.parametrize("make", [bare_record, without_labels, not_finite])
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
