"""Take blocks out of a network: each goes down to its shortcut and what follows the addition."""

import copy
from collections.abc import Sequence

from torch import nn

from shoal.batches import Batch, as_batch, call, device_of, logits_of
from shoal.blocks import Anatomy, Chain, dissect
from shoal.errors import PlanError, ShoalError, SurgeryError, UnknownBlockError, did_you_mean
from shoal.plan import Plan, check_signature, check_state
from shoal.preserve import evaluating
from shoal.surgery.fold import fold_as_planned_
from shoal.surgery.replace import replace_spans_
from shoal.surgery.signature import example_of, signature_of, state_of


def check_removable(chain: Chain, paths: Sequence[str]) -> None:
    """Refuse to remove what is no block, cannot be removed, or is named twice.

    Raises:
        UnknownBlockError: no such block, with near matches.
        SurgeryError: the block cannot be removed, with the reason of the chain.
    """
    for path in paths:
        if path not in chain.paths:
            raise UnknownBlockError(f"no residual block called '{path}'", did_you_mean(path, chain.paths))
        block = chain[path]
        if not block.removable:
            raise SurgeryError(
                f"the block '{path}' cannot be removed: {block.reason}", "`shoal trace` lists the others."
            )
    twice = sorted({path for path in paths if list(paths).count(path) > 1})
    if twice:
        raise SurgeryError(f"the block '{twice[0]}' is named twice", "Name each block once.")


def remove_blocks_(anatomy: Anatomy, paths: Sequence[str]) -> nn.Module:
    """Take the blocks at `paths` out of `anatomy.model`, in place; everything is checked before the first change.

    Raises:
        UnknownBlockError, SurgeryError: see `check_removable`.
    """
    check_removable(anatomy.chain, paths)
    for path in paths:
        block, remainder = anatomy.model.get_submodule(path), anatomy.remainders[path]
        if all(part is not remainder for part in block.modules()):  # parts of the block have their own mode
            remainder.training = block.training
        anatomy.model.set_submodule(path, remainder, strict=True)
    return anatomy.model


def remove_blocks(model: nn.Module, example: Batch, paths: Sequence[str]) -> nn.Module:
    """A copy of `model` without the blocks at `paths`; `model` stays as it is.

    The copy is run once on the example and once on a single sample of it, and must return the shapes of the original.

    Raises:
        UnknownBlockError, SurgeryError: see `check_removable`; or the copy does not run.
    """
    anatomy = dissect(copy.deepcopy(model), example)
    cut = remove_blocks_(anatomy, paths)
    _check_runs(model, cut, example)
    return cut


def apply(model: nn.Module, plan: Plan, example: object = None, *, weights_follow: bool = False) -> nn.Module:
    """A copy of `model` with the plan carried out.

    Args:
        model: the original network (its weights may differ from those the plan was made with).
        plan: made for a network of the same names, shapes, dtypes and chain.
        example: a mini-batch to trace with; by default one of zeros of the shape the plan remembers.
        weights_follow: the caller is about to load the weights of the result, so folds that hold only for certain
            weights (constants) are carried out in structure alone.

    Raises:
        PlanError: the plan was made for another network, or folds what cannot be folded in it; says what differs.
    """
    check_state(plan, state_of(model))
    batch = as_batch(example) if example is not None else example_of(plan.inputs).to(device_of(model))
    anatomy = dissect(copy.deepcopy(model), batch)
    check_signature(plan, signature_of(anatomy.model, anatomy.chain))
    replace_spans_(anatomy, plan.replaced)
    if plan.replaced and not weights_follow:
        raise PlanError(
            "the plan puts stand-ins in the place of blocks, and their fitted weights are not in it",
            "Load the output folder it belongs to (shoal.load), or compress again with data.",
        )
    cut = remove_blocks_(anatomy, plan.removed)
    if plan.folds:
        cut = fold_as_planned_(dissect(cut, batch), plan.folds, weights_follow=weights_follow)
    _check_runs(model, cut, batch)
    return cut


def _check_runs(model: nn.Module, cut: nn.Module, example: Batch) -> None:
    # One sample alone: shortcuts that were recorded with the batch size written into them would fail here.
    for batch in (example, example.take(1)):
        with evaluating(model), evaluating(cut):
            expected = logits_of(call(model, batch)).shape
            try:
                found = logits_of(call(cut, batch)).shape
            except ShoalError as error:
                raise SurgeryError(
                    f"the network does not run without these blocks: {error.message}",
                    "Leave them out with --exclude, and please report the network.",
                ) from error
        # A network that returns as many as it finds (boxes) may find another number.
        counted = 0 if expected[:1] == (batch.size,) else 1
        if found[counted:] != expected[counted:]:
            raise SurgeryError(
                f"without these blocks the network returns shape {tuple(found)}, expected {tuple(expected)}",
                "Leave them out with --exclude, and please report the network.",
            )
