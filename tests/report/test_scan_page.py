import re
from itertools import pairwise

import pytest
from reading import Page
from scanned import ODD, evil_scan, make_scan, one_sample, plain_chain, with_second, without_labels

from shoal.record import ScanRecord
from shoal.report import render_scan
from shoal.report.scan import key_figures


@pytest.mark.parametrize("make", [make_scan, *ODD])
def test_the_page_is_well_formed_and_holds_its_scan(make) -> None:
    record = make()
    page = Page(render_scan(record))
    assert ScanRecord.model_validate_json(page.record).model_dump_json() == record.model_dump_json()
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    named = [one[key] for _, one in page.tags for key in ("aria-labelledby", "aria-describedby") if one.get(key)]
    assert {word for name in named for word in name.split()} <= set(ids)
    links = [one["href"] for one in page.all("a")]
    assert all(link[1:] in ids for link in links if link.startswith("#"))
    assert all(link.startswith(("#", "https://arxiv.org/abs/")) for link in links)


def test_names_that_are_markup_are_inert() -> None:
    page = Page(render_scan(evil_scan()))
    assert len(page.all("script")) == 2
    assert not page.all("img")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_nothing_is_loaded_from_anywhere() -> None:
    text = render_scan(with_second())
    page = Page(text)
    assert not page.all("link") + page.all("img") + page.all("iframe")
    assert not [attributes for _, attributes in page.tags if "src" in attributes]
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    (policy,) = [one["content"] for one in page.all("meta") if "http-equiv" in one]
    assert policy.startswith("default-src 'none'")


@pytest.mark.parametrize("make", [make_scan, *ODD])
def test_tables_and_pictures_can_be_read_aloud(make) -> None:
    page = Page(render_scan(make()))
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(header.get("scope") in {"col", "row"} for header in page.all("th"))
    assert all(one["role"] == "img" and one["aria-labelledby"] for one in page.all("svg"))
    drawn = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert drawn
    assert all(one.get("aria-labelledby") or (one["aria-label"] and one["aria-describedby"]) for one in drawn)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


@pytest.mark.parametrize("make", [make_scan, *ODD])
def test_missing_numbers_are_never_shown_as_such(make) -> None:
    visible = " ".join(Page(render_scan(make())).visible)
    assert not re.search(r"\b(None|nan|inf|True|False)\b", visible)


def test_what_was_measured_is_on_the_page() -> None:
    visible = " ".join(Page(render_scan(make_scan())).visible)
    for expected in ("shoal scan digits-resnet digits", "Some Processor 4 GHz", "Tango", "Spearman", "0.92 to 0.99"):
        assert expected in visible


def test_scores_stand_in_the_order_of_their_correlation() -> None:
    text = render_scan(make_scan())
    places = [text.index(f"<h3>{name}</h3>") for name in ("mean response", "linear cka", "taylor")]
    assert places == sorted(places)
    assert '<a href="https://arxiv.org/abs/1905.00414"' in text
    assert "a textbook</p>" in text


def test_parts_without_content_are_left_out() -> None:
    headings = {one["href"] for one in Page(render_scan(plain_chain())).all("a")}
    assert headings == {"#main", "#layers", "#measured"}
    assert 'id="second"' not in render_scan(make_scan())
    assert "may matter on another" in render_scan(with_second())


def test_an_interval_without_an_end_is_said_to_have_none() -> None:
    assert "no finite interval" in render_scan(one_sample())


def test_four_figures_of_a_scan() -> None:
    assert [(one.name, one.value) for one in key_figures(make_scan())] == [
        ("Trivial blocks", "9 of 27"),
        ("Non-trivial layers", "31 of 56"),
        ("Top-1, test", "98.0 %"),
        ("Best score", "0.97"),
    ]


def test_figures_that_were_not_measured_are_left_out() -> None:
    assert [one.name for one in key_figures(plain_chain())] == ["Non-trivial layers", "Top-1, test"]
    assert "Loss, test" in [one.name for one in key_figures(one_sample())]
    assert [one.name for one in key_figures(without_labels())][-1] == "Best score"
    assert len(key_figures(without_labels())) == 3
