"""Put stand-ins in the place of spans."""

from collections.abc import Mapping, Sequence

from torch import nn

from shoal.blocks import Anatomy
from shoal.errors import SurgeryError
from shoal.plan import Replace
from shoal.replace import Line, Through, build, line_of


def replace_spans_(
    anatomy: Anatomy, actions: Sequence[Replace], modules: Mapping[str, nn.Module] | None = None
) -> nn.Module:
    """Put a stand-in at the first module of each span, in place; its other modules hand through.

    Args:
        anatomy: of the network to change.
        actions: what to replace.
        modules: the fitted stand-ins by the path of their first module; without one it is built with fresh weights.

    Raises:
        SurgeryError: a span that is none in this network.
    """
    line = line_of(anatomy)
    for action in actions:
        _check(line, action)
    for action in actions:
        first = action.paths[0]
        module = (modules or {}).get(first)
        if module is None:
            module = build(action.stand_in, next(anatomy.model.parameters()))
        anatomy.model.set_submodule(first, module, strict=True)
        for path in action.paths[1:]:
            anatomy.model.set_submodule(path, Through(), strict=True)
    return anatomy.model


def _check(line: Line, action: Replace) -> None:
    names = line.paths
    start = names.index(action.paths[0]) if action.paths and action.paths[0] in names else len(names)
    covered: list[str] = []
    for number in range(start, len(names)):
        if len(covered) >= len(action.paths) or (number > start and not line.follows[number]):
            break
        covered += line.steps[number].paths
    if not covered or covered != action.paths:
        raise SurgeryError(
            f"{', '.join(action.paths) or '(none)'} are no span: they do not follow each other directly",
            "`shoal trace` lists the chain.",
        )
