"""Remove blocks from a network: each is reduced to its shortcut and what follows the addition."""

from collections.abc import Sequence

from torch import nn

from shoal.batches import Batch, as_batch, call, device_of, like_of
from shoal.blocks import BlockGraph, Chain, analyze
from shoal.blocks.module_replacements import module_replacements
from shoal.blocks.shortcut_modules import match_mode_
from shoal.errors import (
    PlanError,
    ShoalError,
    SurgeryError,
    UnknownBlockError,
    did_you_mean,
    expect_type,
    naming_memory_shortage,
)
from shoal.intake import check_network, check_usable, plain
from shoal.outputs import mismatch, read_outputs
from shoal.plan import Plan, Remove, check_signature, check_state
from shoal.preserve import copied, evaluating, shared_copy
from shoal.surgery.fold import fold_as_planned_
from shoal.surgery.hugging_face import attention_slots, repair_kv_cache_
from shoal.surgery.replace import replace_spans_
from shoal.surgery.signature import example_of, signature_of, state_of

# A removal, or its name: `layer.3`, its unit 1 `layer.3#1`, the block with the norms behind it `layer.3+norms`.
Removal = str | Remove


def check_removable(chain: Chain, removals: Sequence[Removal]) -> None:
    """Refuse removals of unknown blocks, of blocks that cannot be removed, and of blocks named twice.

    Raises:
        UnknownBlockError: no such block, with near matches.
        SurgeryError: the block cannot be removed, with the reason of the chain.
    """
    listed = _as_removals(removals)
    for removal in listed:
        if removal.path not in chain.paths:
            raise UnknownBlockError(
                f"no residual block called '{removal.path}'", did_you_mean(removal.path, chain.paths)
            )
        block = chain[removal.path]
        if removal.unit is None and not block.removable:
            raise SurgeryError(
                f"the block '{removal.path}' cannot be removed: {block.reason}", "`shoal trace` lists the others."
            )
    places = [(removal.path, removal.unit) for removal in listed]
    whole = {removal.path for removal in listed if removal.unit is None}
    for removal in listed:
        if places.count((removal.path, removal.unit)) > 1 or (removal.unit is not None and removal.path in whole):
            raise SurgeryError(f"the block '{removal.path}' is named twice", "Name each block once.")


def remove_blocks_(graph: BlockGraph, removals: Sequence[Removal]) -> nn.Module:
    """Remove blocks, or single units of them, from `graph.model`, in place; everything is checked first.

    Raises:
        UnknownBlockError, SurgeryError: see `check_removable`; or a unit cannot be taken out alone, or a block has no
            norms behind its additions that could go too.
    """
    check_removable(graph.chain, removals)
    listed = _as_removals(removals)
    for removal in listed:
        if removal.norms == "drop" and removal.path not in graph.shortcuts_without_norms:
            raise SurgeryError(
                f"the block '{removal.path}' has no norm behind its additions that could go with it",
                "Remove it with norms 'keep'.",
            )
    attentions = attention_slots(graph.model)
    for path, module in module_replacements(graph, listed).items():
        before = graph.model.get_submodule(path)
        match_mode_(module, before)
        graph.model.set_submodule(path, module, strict=True)
    repair_kv_cache_(graph.model, attentions)
    return graph.model


def _as_removals(removals: Sequence[Removal]) -> list[Remove]:
    return [Remove.named(removal) if isinstance(removal, str) else removal for removal in removals]


def remove_blocks(
    model: nn.Module, example: Batch, removals: Sequence[Removal], holder: nn.Module | None = None
) -> nn.Module:
    """A copy of `model` without these blocks, or single units of them; `model` stays as it is.

    The copy is run once on the example and once on a single sample of it, and must return the shapes of the original.

    Args:
        model: the network.
        example: a mini-batch to trace with.
        removals: what goes.
        holder: a copy of the network in whose memory the weights of the result may lie, see `shared_copy`.

    Raises:
        UnknownBlockError, SurgeryError: see `remove_blocks_`; or the copy does not run.
    """
    graph = analyze(copied(model) if holder is None else shared_copy(model, holder), example)
    cut = remove_blocks_(graph, removals)
    _check_runs(model, cut, example)
    return cut


@naming_memory_shortage()
def apply(
    model: nn.Module,
    plan: Plan,
    example: object = None,
    *,
    weights_follow: bool = False,
    any_weights: bool = False,
) -> nn.Module:
    """A copy of `model` with the plan carried out.

    Args:
        model: the original network (its weights may differ from those the plan was made with).
        plan: made for a network of the same names, shapes, dtypes and chain.
        example: a mini-batch to trace with; by default one of zeros of the shape the plan remembers.
        weights_follow: the caller is about to load the weights of the result, so folds that hold only for certain
            weights (constants) are carried out in structure alone.
        any_weights: the plan may come from a network of the same blocks that keeps its weights in another form, such as
            a quantised one; see `retargeted`.

    Raises:
        PlanError: the plan was made for another network, or folds what cannot be folded in it; says what differs.
    """
    check_network(model)
    plan = expect_type(plan, Plan, "plan", "shoal.read_plan(path) reads a plan.json.")
    check_usable(model)
    model = plain(model)
    if any_weights:
        plan = retargeted(plan, model, example)
    check_state(plan, state_of(model))
    batch = as_batch(example) if example is not None else example_of(plan.inputs).to(device_of(model))
    graph = analyze(copied(model), batch)
    check_signature(plan, signature_of(graph.model, graph.chain))
    replace_spans_(graph, plan.replaced)
    if plan.replaced and not weights_follow:
        raise PlanError(
            "the plan puts stand-ins in the place of blocks, and their fitted weights are not in it",
            "Load the output folder it belongs to (shoal.load), or compress again with data.",
        )
    cut = remove_blocks_(graph, plan.removals)
    if plan.folds:
        cut = fold_as_planned_(analyze(cut, batch), plan.folds, weights_follow=weights_follow)
    _check_runs(model, cut, batch)
    return cut


def retargeted(plan: Plan, model: nn.Module, example: object = None) -> Plan:
    """A plan of removals for a network of the same blocks whose weights are of another form, dtype or name.

    A quantised network is scored where the original has no room, and what was found is done to the original.

    Args:
        plan: made with the other network.
        model: the network it is for; it is left as it was.
        example: a mini-batch to trace with; by default one of zeros, in the dtype of the network.

    Raises:
        PlanError: the plan does more than remove, or the blocks are others; says which.
    """
    check_usable(model)
    model = plain(model)
    if plan.replaced or plan.folds:
        raise PlanError(
            "the plan holds weights that were fitted or folded, and they belong to the network it was made with",
            "Make a plan of removals alone (--remove 4) with the other network, or compress this one.",
        )
    dtype = str(like_of(model).dtype).removeprefix("torch.")
    inputs = [spec.model_copy(update={"dtype": dtype}) if "float" in spec.dtype else spec for spec in plan.inputs]
    plan = plan.model_copy(update={"inputs": inputs})
    batch = as_batch(example) if example is not None else example_of(plan.inputs).to(device_of(model))
    signature = signature_of(model, analyze(copied(model), batch).chain)
    check_signature(plan, signature.model_copy(update={"state": plan.network.state}))
    return plan.model_copy(update={"network": signature})


def _check_runs(model: nn.Module, cut: nn.Module, example: Batch) -> None:
    # One sample alone: shortcuts that were recorded with the batch size written into them would fail here.
    for batch in (example, example.take(1)):
        with evaluating(model), evaluating(cut):
            expected = read_outputs(call(model, batch))
            try:
                actual = read_outputs(call(cut, batch))
            except ShoalError as error:
                raise SurgeryError(
                    f"the network does not run without these blocks: {error.message}",
                    "Leave them out with --exclude, and please report the network.",
                ) from error
        # A network that returns as many as it finds (boxes) may find another number.
        reason = mismatch(expected, actual, rows=batch.size)
        if reason is not None:
            raise SurgeryError(
                f"without these blocks the network returns something else: {reason} (the original first)",
                "Leave them out with --exclude, and please report the network.",
            )
