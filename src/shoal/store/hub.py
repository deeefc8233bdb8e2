"""Put an output folder on the hub of Hugging Face: the network, its card, recipe, figures and report; no journals."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.errors import ExportError, FolderError, UsageError
from shoal.files.reading import read_json, refusing
from shoal.files.tensors import check_whole
from shoal.store.export import NAS
from shoal.store.folder import CARD, CONFIG, EXTRAS, FRONT, GGUF, ONNX, PLAN, PROGRAM, RECORD, REPORT, WEIGHTS
from shoal.store.hugging_face import HF
from shoal.store.load import check_finished, read_folder_plan

# What tells of the run; the weights come in one of the forms.
_ACCOUNT = (PLAN, RECORD, REPORT, FRONT, CONFIG)
_FORMS = ("shoal", HF, NAS)
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")


@dataclass(frozen=True)
class Pushed:
    """What was put where.

    Args:
        repo: on the hub.
        url: of the commit; empty where nothing was sent.
        files: their paths in the repository.
    """

    repo: str
    url: str
    files: list[str]


def push(
    folder: str | Path, repo: str, *, form: str | None = None, private: bool = True, send: bool = True, api: Any = None
) -> Pushed:
    """Send an output folder to the hub, in one commit; the repository is made if there is none.

    Args:
        folder: of a finished run.
        repo: `OWNER/NAME`.
        form: `hf` (the files of `hf/` at the root, which `from_pretrained(REPO)` loads), `nemotron-nas`, or `shoal`
            (the folder as it is, for `shoal.load`); by default hf where the folder has it.
        private: make a new repository private.
        send: False only says what would be sent.
        api: an `HfApi`; by default one with the login of this machine.

    Raises:
        UsageError: the name is none, or the folder lacks this form.
        FolderError: no finished run, one that left no network, or a damaged one.
        PlanError: a damaged plan.
        ExportError: huggingface_hub is missing, or the hub refused.
    """
    path = Path(folder)
    if not all(map(_is_name, repo.split("/"))) or repo.count("/") != 1:
        hint = "Write OWNER/NAME, of letters, digits, '-', '_' and '.'."
        raise UsageError(f"'{repo}' is no name of a repository", hint)
    check_finished(path, RECORD, PLAN, WEIGHTS)
    with refusing(FolderError, f"'{path / RECORD}' is damaged", "Run the command again."):
        record = read_json(path / RECORD)
    if not isinstance(record, dict):
        raise FolderError(f"'{path / RECORD}' is damaged: it holds no record", "Run the command again.")
    read_folder_plan(path)
    form = form or (HF if (path / HF).is_dir() else "shoal")
    if form not in _FORMS or (form != "shoal" and not (path / form).is_dir()):
        raise UsageError(
            f"'{path}' has no form '{form}'",
            f"It has {', '.join(_present(path))}; `shoal export` writes {HF} and {NAS}.",
        )
    files = dict(_files(path, form))
    for file in files.values():
        if file.suffix == ".safetensors":
            check_whole(file, FolderError, f"'{file}' is damaged", "Run the command again.")
    if not send:
        return Pushed(repo, "", sorted(files))
    try:
        import huggingface_hub
    except ImportError as error:
        raise ExportError("pushing needs huggingface_hub", "pip install 'shoal[hub]'") from error
    operations = [huggingface_hub.CommitOperationAdd(name, str(file)) for name, file in sorted(files.items())]
    try:
        api = api or huggingface_hub.HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(repo, operations, commit_message="Made shallower with Shoal")
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"the hub did not take '{repo}': {reason}", "Check the name, and `hf auth login`.") from error
    return Pushed(repo, str(getattr(commit, "commit_url", commit)), sorted(files))


def _is_name(text: str) -> bool:
    """Whether the hub takes it as the name of an owner or of a repository."""
    return _NAME.fullmatch(text) is not None and "--" not in text and ".." not in text and not text.endswith(".git")


def _present(path: Path) -> list[str]:
    return [form for form in _FORMS if form == "shoal" or (path / form).is_dir()]


def _files(path: Path, form: str) -> Iterator[tuple[str, Path]]:
    """The files to send by their paths in the repository; links are left out, as they may lead anywhere."""
    names = [*_ACCOUNT, *((CARD, WEIGHTS, EXTRAS, PROGRAM, ONNX, GGUF) if form == "shoal" else ())]
    candidates = [(name, path / name) for name in names]
    if form != "shoal":
        candidates += [(str(file.relative_to(path / form)), file) for file in sorted((path / form).rglob("*"))]
    yield from ((name, file) for name, file in candidates if file.is_file() and not file.is_symlink())
