"""`shoal doctor`: versions, devices, and what is missing for what. `shoal list`: what there is by name."""

import platform
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from importlib import import_module, metadata
from typing import Any

from packaging.requirements import Requirement

from shoal.cli.console import Session
from shoal.cli.options import DoctorRequest, ListRequest
from shoal.errors import UsageError, count_of, did_you_mean
from shoal.files.reading import reason_of

# What each extra of the distribution is for.
PURPOSES = {
    "vision": "MODEL torchvision:NAME and timm:NAME; DATA cifar10, cifar100, svhn, imagefolder",
    "text": "MODEL hf:PATH_OR_ID; DATA text:FILE",
    "diffusion": "MODEL hf-diffusers:PATH_OR_ID; DATA diffusion:PIPELINE",
    "audio": "DATA audio:ROOT",
    "tasks": "metrics of segmentation, detection, restoration and speech",
    "onnx": "shoal export --onnx",
    "gguf": "shoal export --gguf",
    "hub": "DATA hf-data:NAME; shoal push",
    "lora": "compress --recover ... --lora",
    "eval": "shoal eval",
    "ray": "scan and compress --ray ADDRESS, on several machines",
    "all": "everything of these but hub, eval and ray",
    "tutorials": "running the notebooks of docs/tutorials",
    "docs": "building the site: make docs",
    "dev": "developing Shoal: make test",
}

# The libraries whose networks are found by name, and where each lists them.
_LIBRARIES = {"torchvision": "torchvision.models", "timm": "timm"}

Row = dict[str, Any]


def run_doctor(session: Session, request: DoctorRequest) -> int:
    """Report; 2 where something that Shoal cannot do without is missing or too old."""
    extras = _requirements()
    required = [_installed(requirement) for requirement in extras.pop("")]
    devices = _devices()
    report = {
        "shoal": metadata.version("shoal"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "devices": devices,
        "required": required,
        "extras": [
            _extra(name, extras[name]) for name in sorted(extras, key=lambda name: name in ("all", "docs", "dev"))
        ],
    }
    if session.as_json:
        session.print_json(report)
    else:
        _show_report(session, report)
    return 0 if all(row["ok"] for row in (*required, devices[0])) else 2


def run_list(session: Session, request: ListRequest) -> int:
    """Print one table, or a part of it."""
    if request.what not in LISTS:
        raise UsageError(f"there is no list of '{request.what}'", did_you_mean(request.what, list(LISTS)))
    pattern = request.pattern.lower() if request.pattern else ""
    rows = [row for row in LISTS[request.what](bool(pattern)) if _matches(row, pattern)]
    if session.as_json:
        session.print_json({request.what: rows})
    else:
        _show_rows(session, rows, f"no {request.what} match '{request.pattern}'")
        if request.what == "models" and not pattern:
            session.say("\nshoal list models 'resnet*' searches the names of torchvision and timm.")
        missing = [name for name in _LIBRARIES if pattern and request.what == "models" and not _list_models(name)]
        if missing:
            session.say(f"not searched: {', '.join(missing)}; shoal doctor")
    return 0


def _requirements() -> dict[str, list[Requirement]]:
    """What the distribution needs, by extra; '' for what it cannot do without."""
    lines = [Requirement(line) for line in metadata.requires("shoal") or []]
    required = [line for line in lines if _applies(line, "")]
    by_extra = {name: [line for line in lines if _applies(line, name) and line not in required] for name in PURPOSES}
    return {"": required} | {name: [*_resolved(own, by_extra)] for name, own in by_extra.items()}


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _resolved(requirements: list[Requirement], by_extra: dict[str, list[Requirement]]) -> Iterator[Requirement]:
    """With other extras of Shoal replaced by what they need."""
    for requirement in requirements:
        if requirement.name != "shoal":
            yield requirement
        for extra in requirement.extras if requirement.name == "shoal" else ():
            yield from _resolved(by_extra[extra], by_extra)


def _installed(requirement: Requirement) -> Row:
    try:
        present = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return {"name": requirement.name, "version": None, "needs": str(requirement.specifier), "ok": False}
    fits = requirement.specifier.contains(present, prereleases=True)
    return {"name": requirement.name, "version": present, "needs": str(requirement.specifier), "ok": fits}


def _extra(name: str, requirements: list[Requirement]) -> Row:
    packages = [_installed(requirement) for requirement in requirements]
    missing = [f"{row['name']}{row['needs']}" for row in packages if not row["ok"]]
    return {"name": name, "for": PURPOSES[name], "ok": not missing, "missing": missing, "packages": packages}


def _devices() -> list[Row]:
    """Every device of torch, and whether it multiplies two matrices."""
    try:
        import torch
    except (ImportError, OSError, RuntimeError) as error:  # it is missing, or its libraries do not load
        return [{"name": "cpu", "what": "", "ok": False, "problem": f"torch cannot be imported: {reason_of(error)}"}]
    names = [("cpu", f"{platform.machine()}, {count_of(torch.get_num_threads(), 'thread')}")]
    if torch.cuda.is_available():
        names += [(f"cuda:{i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append(("mps", "Apple GPU"))
    return [{"name": name, "what": what, **_works(torch, name)} for name, what in names]


def _works(torch: Any, device: str) -> Row:
    try:
        ones = torch.ones(4, 4, device=device)
        works = float((ones @ ones)[0, 0]) == 4
    except RuntimeError as error:  # a driver that does not go with this torch
        return {"ok": False, "problem": str(error).splitlines()[0]}
    return {"ok": works, "problem": "" if works else "it multiplies wrongly"}


def _models(with_libraries: bool) -> Iterator[Row]:
    from shoal.sources.models import MODEL_SOURCES
    from shoal.sources.registry import ModelSource

    yield from (_form(name, source, MODEL_SOURCES) for name, source in _of_type(MODEL_SOURCES, ModelSource))
    yield {"name": "FILE.py:FUNCTION", "what it is": "what a function of yours returns; the file is run", "from": "you"}
    if with_libraries:
        yield from (
            {"name": f"{library}:{name}", "what it is": "", "from": library} for library, name in _library_models()
        )


def _library_models() -> Iterator[tuple[str, str]]:
    yield from ((library, name) for library in _LIBRARIES for name in _list_models(library))


def _list_models(library: str) -> list[str]:
    """What a library has; nothing where it cannot be imported, as when it does not go with this torch."""
    try:
        return list(import_module(_LIBRARIES[library]).list_models())
    except (ImportError, OSError, RuntimeError):
        return []


def _data(_: bool) -> Iterator[Row]:
    from shoal.sources.audio import FORM
    from shoal.sources.data import DATA_SOURCES, TEXT_SOURCES, TEXT_SUMMARIES
    from shoal.sources.registry import DataSource

    yield from (_form(name, source, DATA_SOURCES) for name, source in _of_type(DATA_SOURCES, DataSource))
    for name, form in TEXT_SOURCES.items():
        yield {"name": form, "what it is": TEXT_SUMMARIES[name], "from": "Shoal"}
    yield {"name": FORM, "what it is": "sounds, with transcripts or by class", "from": "Shoal"}
    yield {"name": "FILE.py:FUNCTION", "what it is": "train and test that a function of yours returns", "from": "you"}


def _replacements(_: bool) -> Iterator[Row]:
    from shoal.replace.kinds import REPLACEMENTS
    from shoal.replace.students.specs import STUDENTS

    for name, kind in REPLACEMENTS.items():
        yield {"name": name, "replaces": kind.requirement, "MACs per position": kind.macs_note, "source": kind.source}
    for name in ("folded", "linear_attention", *STUDENTS):
        yield {
            "name": name,
            "replaces": _TRAINED[name],
            "MACs per position": "of what is kept",
            "source": "docs/plan.md",
        }


_TRAINED = {
    "folded": "blocks on tokens, by other weights in the layer in front of them",
    "linear_attention": "attentions, by a linear map of the normalised stream",
    "block": "blocks, by a block of their own kind that is trained",
    "narrow": "blocks, by the same blocks with half the inner features, trained",
    "narrow1/4": "the same with a quarter of the inner features",
}


def _metrics(_: bool) -> Iterator[Row]:
    from shoal.scanning.damage import METRICS
    from shoal.tasks.choice import TASKS

    for name in METRICS:
        yield {"name": name, "used for": "damage: how far outputs are from the original's", "unit": ""}
    for task in TASKS.values():
        for metric in task.metrics:
            yield {"name": metric.name, "used for": f"task {task.name}: {metric.label}", "unit": metric.unit}


def _scores(_: bool) -> Iterator[Row]:
    from shoal.scanning.scores.block_scores import SCORES

    for name, score in SCORES.items():
        yield {
            "name": name,
            "measures": score.summary,
            "a high value means": score.high_means,
            "source": score.source,
        }


# What can be listed; the argument says whether somebody searches, for what is too long to be listed in full.
LISTS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "models": _models,
    "data": _data,
    "replacements": _replacements,
    "metrics": _metrics,
    "scores": _scores,
}


def _of_type(table: Mapping[str, Any], kind: type) -> Iterator[tuple[str, Any]]:
    return ((name, source) for name, source in table.items() if isinstance(source, kind))


def _form(name: str, source: Any, table: Any) -> Row:
    origin = "Shoal" if name in table.builtin else f"the plugin '{name}'"
    return {"name": source.form, "what it is": source.summary, "from": origin}


def _matches(row: Row, pattern: str) -> bool:
    name = str(row["name"]).lower()
    return pattern in name or fnmatch(name, pattern) or fnmatch(name.partition(":")[2], pattern)


def _show_rows(session: Session, rows: list[Row], if_none: str) -> None:
    if not rows:
        session.say(if_none)
        return
    lines = [[*rows[0]], *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]) - 1)]
    for line in lines:
        session.say("  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[-1]]))


def _show_report(session: Session, report: Row) -> None:
    session.say(f"shoal {report['shoal']}, Python {report['python']}, {report['system']}")
    devices = [(row, row["what"] if row["ok"] else row["problem"]) for row in report["devices"]]
    required = [(row, _version_of(row)) for row in report["required"]]
    extras = [(row, row["for"] if row["ok"] else _way_out(row)) for row in report["extras"]]
    for title, rows in (("devices", devices), ("required", required), ("optional", extras)):
        session.say(f"\n{title}")
        for row, text in rows:
            session.say(f"  {'ok' if row['ok'] else '--'}  {row['name']:<16}{text}")


def _version_of(row: Row) -> str:
    if row["version"] is None:
        return f"missing; {row['needs']} is needed"
    return str(row["version"]) if row["ok"] else f"{row['version']}; {row['needs']} is needed"


def _way_out(row: Row) -> str:
    return f"{row['for']}. Missing: {', '.join(row['missing'])}; pip install 'shoal[{row['name']}]'"
