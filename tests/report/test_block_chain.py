import math

import pytest
from handmade import make_blocks, make_record
from planned import planned_record
from reading import Page
from scanned import make_scan, scanned_blocks, unmeasured

from shoal.report import chain, render, render_scan
from shoal.report.chain import BlockCell, ChainGrid, Decades, by_stage
from shoal.report.plan import plans_of, with_actions


def cells(drawn: ChainGrid) -> list[BlockCell]:
    return [cell for stage in drawn.stages for cell in stage.cells]


def planned(number: int = 8, per_stage: int = 9, **changes: object) -> ChainGrid:
    plan = plans_of(planned_record(per_stage, **changes))[number - 1]
    spans = [(span.paths, span.kind) for span in plan.spans]
    return chain.plan_chain(with_actions(make_blocks(per_stage), plan.point), spans, plan.number)


def replaced(paths: list[str], kind: str) -> list[BlockCell]:
    """The cells under one replacement."""
    point = planned_record().planning.front[0].model_copy(update={"removed": [], "replaced": [paths], "kinds": [kind]})
    return [cell for cell in cells(planned(1, front=[point])) if "joined" in cell.style]


@pytest.mark.parametrize("values", [[], [None, 0.0, -1e-9, math.nan], [0.1], [1e-12, 1e3], [1.0, 10.0]])
def test_bars_stay_inside_their_cells(values: list[float | None]) -> None:
    scale = Decades.of(values)
    assert scale.high - scale.low <= 6
    heights = [scale.at(value) for value in values]
    assert all(height is None or 0 <= height <= 100 for height in heights)
    assert all(
        (height is None) == (value is None or math.isnan(value)) for height, value in zip(heights, values, strict=True)
    )
    assert all(0 <= place <= 100 for place, _ in scale.ticks)


def test_the_scale_is_logarithmic_and_labelled_with_powers_of_ten() -> None:
    scale = Decades.of([1e-4, 0.5])
    assert scale.at(1e-2) == 50.0
    assert scale.ticks == [(100.0, "1"), (50.0, "10⁻²"), (0.0, "10⁻⁴")]


def test_blocks_are_grouped_by_stage_in_order() -> None:
    blocks = make_blocks()
    assert [(number, len(members)) for number, members in by_stage(blocks)] == [(1, 9), (2, 9), (3, 9)]


def test_an_action_is_shown_by_more_than_colour() -> None:
    blocks = make_blocks()
    drawn = chain.action_chain(blocks, "c")
    assert [cell.style.split()[0] for cell in cells(drawn)] == [block.action for block in blocks]
    assert [cell.title for cell in cells(drawn)] == [chain.action_title(block) for block in blocks]
    assert [cell.name for cell in cells(drawn) if "projection" in cell.style] == ["0", "0"]
    assert (drawn.stages[0].number, drawn.stages[0].facts) == (1, "16 × 32 × 32 · 4 of 9 kept")


def test_the_text_alternative_names_what_was_removed() -> None:
    text = chain.action_chain(make_blocks(), "c").desc
    assert "Stage 1: 9 blocks, removed stages.0.1, stages.0.3" in text
    assert text.endswith("The table of blocks below has every number.")


def test_a_block_that_lost_a_unit_says_so() -> None:
    blocks = make_blocks()
    blocks[0] = blocks[0].model_copy(update={"without": [1]})
    blocks[1] = blocks[1].model_copy(update={"action": "kept", "without": [0, 1]})
    assert chain.action(blocks[0]) == "kept, without unit 1"
    assert chain.action(blocks[1]) == "kept, without units 0, 1"
    assert f"{blocks[0].path} kept, without unit 1" in chain.describe_actions(blocks)
    assert chain.action_title(blocks[0]).startswith(f"{blocks[0].path}: kept, without unit 1\n")


def test_what_cannot_be_removed_says_why() -> None:
    block = make_blocks()[9]
    assert chain.why_fixed(block) == "not removable: the shortcut is a projection"
    assert chain.action_title(block).endswith("damage not measured\nnot removable: the shortcut is a projection")


def test_a_verdict_is_shown_by_more_than_colour() -> None:
    drawn = cells(chain.verdict_chain(scanned_blocks(), "top1", "c"))
    assert {cell.style.split()[0] for cell in drawn} == {"non-trivial", "undecided", "trivial"}
    assert drawn[0].title.splitlines() == [
        "stages.0.0: non-trivial",
        "BasicBlock, identity shortcut, 4.67 k parameters",
        "16 × 32 × 32 to 16 × 32 × 32",
        "Top-1 lost: 36.00 points (31.50 to 40.50)",
        "KL 0.900 nats, n = 400",
    ]


def test_blocks_that_were_not_measured_are_drawn_as_such() -> None:
    first, second, *_ = cells(chain.verdict_chain(unmeasured().blocks, "top1", "c"))
    assert (first.style, first.height, second.height) == ("unmeasured", None, None)
    assert first.title.endswith("not removable: shared")


def test_the_text_alternative_names_every_block_by_verdict() -> None:
    text = chain.describe_verdicts(scanned_blocks())
    assert "Stage 1: 9 blocks; non-trivial: stages.0.0, stages.0.4, stages.0.7; undecided:" in text


def test_a_plan_shows_its_own_actions() -> None:
    record = planned_record()
    for plan in plans_of(record):
        drawn = planned(plan.number)
        paths = [block.path for block in make_blocks()]
        by_style = {path: cell.style.split()[0] for path, cell in zip(paths, cells(drawn), strict=True)}
        assert {path for path, style in by_style.items() if style == "removed"} == set(plan.point.removed)
        assert {path for path, style in by_style.items() if style == "replaced"} == {
            p for s in plan.spans for p in s.paths
        }
    assert planned(8).desc == "Stage 1: 4 kept, 5 removed. Stage 2: 5 kept, 4 replaced. Stage 3: 7 kept, 2 replaced."


def test_a_replacement_is_one_box_over_its_blocks_with_its_kind() -> None:
    first, middle, last = replaced(["stages.1.2", "stages.1.3", "stages.1.4"], "conv3")
    assert (first.label, middle.label, last.label) == ("conv3", "", "")
    assert [cell.style for cell in (first, middle, last)] == [
        "replaced joined first",
        "replaced joined",
        "replaced joined last",
    ]
    assert middle.title == "stages.1.3: replaced by conv3"


def test_a_replacement_across_stages_has_a_box_in_each() -> None:
    styles = [cell.style for cell in replaced(["stages.0.8", "stages.1.0", "stages.1.1"], "conv3")]
    assert sum("first" in style for style in styles) == sum("last" in style for style in styles) == 2


@pytest.mark.parametrize(
    ("kind", "label", "upright"),
    [("map", "map", False), ("lowrank", "lowrank", True), ("something very long", "", True)],
)
def test_a_kind_too_long_for_its_box_is_upright_or_in_the_hover_text(kind: str, label: str, upright: bool) -> None:
    (cell,) = replaced(["stages.0.3"], kind)
    assert (cell.label, "upright" in cell.style) == (label, upright)
    assert cell.title.endswith(f"replaced by {kind}")


def test_a_span_of_what_is_not_a_block_is_not_drawn() -> None:
    assert replaced(["features.3", "features.4"], "conv3") == []


def test_without_blocks_there_are_no_chains() -> None:
    assert chain.action_chain([], "c") is chain.verdict_chain([], "top1", "c") is chain.plan_chain([], [], 1) is None


def test_legends_explain_every_sign() -> None:
    assert [meaning for _, meaning in chain.action_legend()][:3] == ["kept", "removed", "replaced"]
    assert [meaning for _, meaning in chain.verdict_legend()][:3] == ["non-trivial", "undecided", "trivial"]
    assert len(chain.plan_legend()) == 3


@pytest.mark.parametrize("text", [render(make_record()), render_scan(make_scan())], ids=["compress", "scan"])
def test_a_chain_is_one_picture_with_a_text_alternative(text: str) -> None:
    page = Page(text)
    (drawn,) = [attributes for _, attributes in page.tags if attributes.get("class") == "chain"]
    assert (drawn["role"], drawn["aria-label"]) == ("img", "The chain of residual blocks")
    assert drawn["aria-describedby"] in {attributes.get("id") for _, attributes in page.tags}
    assert sum((attributes.get("class") or "").startswith("block ") for _, attributes in page.tags) == 27
