import re
from xml.etree import ElementTree

import pytest
from handmade import make_blocks
from planned import planned_record

from shoal.report.plan_chain import Album, album, describe, legend
from shoal.report.plans import Plan, fated, plans


def drawn(per_stage: int = 9, width: float = 1000.0, **changes: object) -> tuple[Album, list[Plan]]:
    found = plans(planned_record(per_stage, **changes))
    return album(make_blocks(per_stage), found, width, "pw"), found


def one_plan(replaced: list[list[str]], kinds: list[str], width: float = 1000.0) -> ElementTree.Element:
    point = planned_record().planning.front[0].model_copy(update={"replaced": replaced, "kinds": kinds})
    return ElementTree.fromstring(drawn(width=width, front=[point])[0].pictures[0])


def boxes(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [rect for group in root.iter("g") if group.get("class") == "stand-in" for rect in group.iter("rect")]


@pytest.mark.parametrize("width", [340.0, 1000.0])
@pytest.mark.parametrize("per_stage", [1, 9, 34])
def test_every_cell_that_is_used_is_in_the_stock_once(per_stage: int, width: float) -> None:
    made, found = drawn(per_stage, width)
    ids = re.findall(r'id="([^"]+)"', made.stock)
    assert len(ids) == len(set(ids))
    used = {one for text in made.pictures for one in re.findall(r'href="#([^"]+)"', text)}
    assert used == set(ids) - {"pw-hatch", "pw-weave"}
    assert len(made.pictures) == len(found) == 24


def test_a_picture_shows_the_fates_of_its_plan() -> None:
    made, found = drawn()
    paths = [block.path for block in make_blocks()]
    for text, plan in zip(made.pictures, found, strict=True):
        signs = re.findall(r'href="#pw([krs])\d+"', text)
        assert {path for path, sign in zip(paths, signs, strict=True) if sign == "r"} == set(plan.point.removed)
        covered = {path for span in plan.point.replaced for path in span}
        assert {path for path, sign in zip(paths, signs, strict=True) if sign == "s"} == covered


def test_a_cell_in_the_stock_looks_like_its_fate() -> None:
    stock = ElementTree.fromstring(drawn()[0].stock)
    for group in stock.findall("g"):
        found = re.fullmatch(r"pw([krs])\d+", group.get("id", ""))
        if found:
            fate = {"k": "kept", "r": "removed", "s": "replaced"}[found[1]]
            assert group.find("g").get("class") == f"block {fate}"
            assert group.find("g/title").text.endswith(f": {fate}")


def test_a_stand_in_covers_its_blocks_and_says_its_kind() -> None:
    root = one_plan([["stages.1.2", "stages.1.3", "stages.1.4"]], ["conv3"])
    (box,) = boxes(root)
    assert 3 * 55 < float(box.get("width")) < 3 * 62
    (group,) = [group for group in root.iter("g") if group.get("class") == "stand-in"]
    assert group.find("text").text == "conv3"
    assert group.find("title").text == "stages.1.2, stages.1.3, stages.1.4: replaced by conv3"


def test_a_stand_in_over_two_lines_has_two_boxes() -> None:
    assert len(boxes(one_plan([["stages.0.8", "stages.1.0", "stages.1.1"]], ["conv3"]))) == 2


def test_a_kind_that_does_not_fit_stands_upright_or_only_in_the_tooltip() -> None:
    def name(kind: str) -> ElementTree.Element | None:
        (group,) = [g for g in one_plan([["stages.0.3"]], [kind], 340.0).iter("g") if g.get("class") == "stand-in"]
        assert kind in group.find("title").text
        return group.find("text")

    assert name("map").get("transform") is None
    assert "rotate(-90)" in name("lowrank").get("transform")
    assert name("something very long") is None


def test_a_span_of_what_is_no_block_is_not_drawn() -> None:
    assert boxes(one_plan([["features.3", "features.4"]], ["conv3"])) == []


def test_without_blocks_there_are_no_pictures() -> None:
    found = plans(planned_record())
    assert album([], found, 1000.0, "pw") == Album("", [""] * 24)


def test_a_hundred_blocks_stay_small() -> None:
    made, _ = drawn(34)
    assert len(made.stock) + sum(map(len, made.pictures)) < 250_000


def test_the_description_counts_the_fates() -> None:
    point = planned_record().planning.front[7]
    assert describe(fated(make_blocks(), point)) == (
        "Stage 1: 4 kept, 5 removed. Stage 2: 5 kept, 4 replaced. Stage 3: 7 kept, 2 replaced."
    )


def test_a_name_cannot_become_markup() -> None:
    blocks = [block.model_copy(update={"path": f"<script>{block.path}"}) for block in make_blocks()]
    point = (
        planned_record().planning.front[0].model_copy(update={"replaced": [[blocks[3].path]], "kinds": ["<script>"]})
    )
    made = album(blocks, plans(planned_record(front=[point])), 1000.0, "pw")
    assert "<script" not in made.stock + made.pictures[0]


def test_the_legend_explains_the_fates_with_ids_of_its_own() -> None:
    assert [meaning.split()[-1] for _, meaning in legend("mine")] == ["kept", "removed", "it"]
    assert all(one.startswith("mine-") for sign, _ in legend("mine") for one in re.findall(r'id="([^"]+)"', sign))
