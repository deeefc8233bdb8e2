"""Code of the user's own, `FILE.py:FUNCTION`: run where the user named it, and nowhere else without consent."""

import ast
import hashlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from shoal.errors import ConsentError, ModelRaisedError, ShoalError, SpecError, check_memory, did_you_mean
from shoal.files.reading import from_home, is_file, read_text, refusing

_SPEC = re.compile(r"^(?P<file>.+\.py)(?::(?P<function>[^:/\\]*))?$")

_PREFIX = "shoal_user_"


def is_file_spec(spec: str) -> bool:
    """Whether a specification names a Python file."""
    return _SPEC.match(spec) is not None


def call_function(spec: str) -> Any:
    """Import the file and return what its function returns when called without arguments.

    Raises:
        SpecError, ModelRaisedError: as for `load_function`; the latter also where the function raised.
    """
    function, path = load_function(spec), parts_of(spec)[0]
    with _folder_first(path.parent), _readable_errors(path, f"calling {parts_of(spec)[1]}() of"):
        return function()


def load_function(spec: str) -> Callable[..., Any]:
    """Import the file and return its function.

    The file is imported under a module name of its own; it can import modules in its folder.

    Raises:
        SpecError: no such file, no function named, or no such function in it.
        ModelRaisedError: the file raised; says what, and at which line of it.
    """
    path, name = parts_of(spec)
    if not is_file(path):
        file = spec[: spec.rindex(".py") + 3]
        raise SpecError(f"there is no file '{file}'", "Give a path that exists, relative to this folder.")
    if not name:
        raise SpecError(f"'{spec}' does not name a function", f"Write FILE.py:FUNCTION. {_defined_in(path)}".strip())
    with _folder_first(path.parent):
        with _readable_errors(path, "importing"):
            module = _import(path)
        return _function(module, name, path)


def parts_of(spec: str) -> tuple[Path, str]:
    """The file that a specification names, with links and dots resolved, and the function.

    Raises:
        SpecError: it names no file.
    """
    match = _SPEC.match(spec)
    if match is None:
        raise SpecError(f"'{spec}' is not of the form FILE.py:FUNCTION")
    with refusing(SpecError, f"'{spec}' names no file"):  # a name with a NUL in it
        return from_home(match["file"]).resolve(), match["function"] or ""


def _import(path: Path) -> ModuleType:
    # The path's digest keeps two files of the same name apart; the module stays registered, since classes
    # defined in it look themselves up there (dataclasses, copy, torch.export).
    name = f"{_PREFIX}{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise SpecError(f"'{path.name}' cannot be imported as a Python module")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _function(module: ModuleType, name: str, path: Path) -> Callable[..., Any]:
    value = getattr(module, name, None)
    if callable(value):
        return value
    names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    names.sort(key=lambda key: getattr(vars(module)[key], "__module__", "") != module.__name__)
    problem = f"'{path.name}' defines no '{name}'" if value is None else f"'{name}' in '{path.name}' is not a function"
    raise SpecError(problem, did_you_mean(name, names))


def _defined_in(path: Path) -> str:
    try:
        tree = ast.parse(read_text(path))
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError):
        return ""
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return f"'{path.name}' defines: {', '.join(names)}." if names else ""


def user_modules() -> list[ModuleType]:
    """The modules of the files that were run so far, and those that they imported from their own folders."""
    loaded = [(name, module) for name, module in sys.modules.items() if isinstance(module, ModuleType)]
    return [module for name, module in loaded if name.startswith(_PREFIX) or name.partition(".")[0] in _siblings]


_siblings: dict[str, Path] = {}  # top-level modules that earlier user files imported, and the folder they came from


@contextmanager
def _folder_first(folder: Path) -> Iterator[None]:
    """The folder in front of the import path; behind it afterwards, for imports inside a `forward`.

    Modules that another user file imported from its own folder under the same name make way first.
    """
    for name, home in list(_siblings.items()):
        if home != folder and ((folder / f"{name}.py").is_file() or (folder / name).is_dir()):
            for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
                del sys.modules[loaded]
            del _siblings[name]
    before = set(sys.modules)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()  # a file may have been added since the folder was last listed
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if "." not in name and file and folder in Path(file).resolve().parents:
                _siblings[name] = folder


@contextmanager
def _readable_errors(path: Path, doing: str) -> Iterator[None]:
    try:
        yield
    except ShoalError:
        raise
    except (Exception, SystemExit) as error:
        check_memory(error, f"{doing} '{path.name}'")
        line = _line_in(path, error)
        where = f"{path.name}, line {line}" if line else path.name
        raise ModelRaisedError(
            f"{doing} '{path.name}' raised {type(error).__name__}: {error} ({where})",
            "Fix the file; running it with `python` shows the same error.",
        ) from error


def _line_in(path: Path, error: BaseException) -> int | None:
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno for frame in reversed(frames) if frame.filename == str(path)), None)


@dataclass(frozen=True)
class Consent:
    """The specifications that the user gave, and whether what others name may be run and fetched too.

    Args:
        typed: MODEL, DATA and the like as they were given; other words among them mean nothing.
        trust_code: anything that a folder or plan names may be run and downloaded.
    """

    typed: frozenset[object] = frozenset()
    trust_code: bool = False

    @classmethod
    def of_specs(cls, specs: Iterable[str], *, trust_code: bool) -> "Consent":
        """The consent in the words of a command line; `--option=SPEC` gives SPEC."""
        typed = [part for spec in specs for part in (spec, spec.partition("=")[2]) if part]
        return cls(frozenset(map(_identity, typed)), trust_code)

    def covers(self, spec: str) -> bool:
        """Whether this very specification was given, or everything is allowed."""
        return self.trust_code or _identity(spec) in self.typed

    def check(self, spec: str, named_by: str) -> None:
        """Refuse to run a file that the user did not name.

        Args:
            spec: of a model, of data, or of latencies.
            named_by: the file that names it, for the message.

        Raises:
            ConsentError: it names a Python file, and the user did not.
        """
        if is_file_spec(spec.strip()) and not self.covers(spec):
            raise ConsentError(
                f"{named_by} names '{spec}', and to open it would run that file",
                "Read the file first. Then repeat with --trust-code (in Python: trust_code=True), or name it yourself.",
            )


def _identity(spec: str) -> object:
    """What two spellings of one specification have in common: the file, with links and dots resolved, and function."""
    spec = spec.strip()
    if not is_file_spec(spec):
        return spec
    try:
        return parts_of(spec)
    except (OSError, ValueError, RuntimeError):  # a name that is no path
        return spec
