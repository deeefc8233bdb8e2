"""What the pages say holds: their code runs, their commands exist, the README is short and names every source."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

import shoal
import stopwatch
import tiny
from shoal.cli.app import app
from shoal.recover.distill import DistillResult
from shoal.sources.data import _BUILTIN as DATA
from shoal.sources.data import AUDIO, TEXT_SOURCES
from shoal.sources.models import _BUILTIN as MODELS
from shoal.sources.models import LoadedModel, load_model

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The blocks of Python of these pages are run by tests of their own; the other pages' are run here.
RUN_BY = {
    "adapters.md": "blocks/test_adapters.py",
    "cookbook-training.md": "test_cookbook.py",
    "epsilon.md": "epsilon/test_train_api.py",
    "extending.md": "test_extending.py",
    "large-networks.md": "test_offloaded.py",
}


def python_of(page):
    """The blocks of Python of a page, in order, as one program."""
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))


@pytest.fixture
def in_a_folder(monkeypatch, tmp_path):
    """A folder of its own, and a clock that costs nothing."""
    stopwatch.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def test_every_block_of_python_is_run():
    here = Path(__file__).read_text(encoding="utf-8")
    for page in PAGES:
        if python_of(page):
            runner = (Path(__file__).parent / RUN_BY[page.name]).read_text() if page.name in RUN_BY else here
            assert re.search(rf"{page.name}\b", runner), f"nothing runs the code of {page.name}"


def test_the_code_of_the_readme(in_a_folder):
    load = shoal.load_data
    in_a_folder.setattr(shoal, "load_model", lambda spec: LoadedModel(tiny.network(), spec), raising=False)
    in_a_folder.setattr(shoal, "load_data", lambda spec: load(spec, limit=40), raising=False)
    scope = {}
    exec(python_of(ROOT / "README.md"), scope)
    assert {"blocks.1", "blocks.4"} <= set(scope["result"].record.removed)
    assert Path("out/record.json").is_file()


@pytest.mark.slow
def test_the_code_of_the_readme_as_it_stands(in_a_folder):
    scope = {}
    exec(python_of(ROOT / "README.md"), scope)
    assert len(scope["result"].record.removed) > 10


@pytest.mark.slow
def test_the_code_of_recovery(in_a_folder):
    page = ROOT / "docs" / "recovery.md"
    train, test = tiny.data()
    loader = [(torch.stack([x for x, _ in part]), torch.tensor([y for _, y in part])) for part in (train, test)]
    quick = shoal.CompressConfig(images=40, latency_seconds=0.001, stand_ins=("scale",), longest=1)
    compress = shoal.compress
    in_a_folder.setattr(shoal, "compress", lambda *args, **more: compress(*args, **more, config=quick), raising=False)
    scope = {"model": tiny.network(), "calibration": loader[:1], "val_loader": loader[1:], "test_loader": loader[1:]}
    scope |= {"student": tiny.network(), "teacher": tiny.network(), "extra": loader[1:], "train_loader": loader[:1]}
    scope |= {"loader_of_epoch": lambda epoch: loader[:1], "shoal": shoal}
    code = python_of(page).replace('"10m"', '"3"').replace("budget=2000", "budget=2")
    assert code != python_of(page)
    exec(code, scope)
    assert isinstance(scope["distilled"], DistillResult)


@pytest.mark.slow
def test_the_code_of_tasks(in_a_folder):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torchmetrics")
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=30, d_model=8, d_kv=4, d_ff=16, num_layers=3, num_heads=2, decoder_start_token_id=0
        )
    ).eval()
    ids = torch.randint(2, 30, (6, 5), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "decoder_input_ids": ids, "labels": ids}
    tokenizer = SimpleNamespace(normalize=str.lower)
    processor = SimpleNamespace(
        batch_decode=lambda rows, **_: [" ".join(map(str, row.tolist())) for row in rows], tokenizer=tokenizer
    )
    in_a_folder.setattr(transformers.AutoProcessor, "from_pretrained", lambda name: processor)
    scope = {"model": model, "calibration": [batch], "test": [batch]}
    exec(python_of(ROOT / "docs" / "tasks.md"), scope)
    assert len(scope["result"].record.removed) == 2


def first_steps(folder, **changes):
    """Do what `first-steps.md` says in `folder`: save its first file, run its second, with some words changed."""
    module, program, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "first-steps.md").read_text(), re.DOTALL)
    (folder / "my_model.py").write_text(module, encoding="utf-8")
    for before, after in changes.items():
        assert before in program
        program = program.replace(before, after)
    exec(program, {})


@pytest.fixture
def newcomer(in_a_folder, tmp_path):
    """An empty folder whose files can be imported, for once."""
    in_a_folder.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_model", None)


def test_the_code_of_first_steps(newcomer):
    first_steps(newcomer, **{"range(8)": "range(1)", "split(64)": "split(400)"})
    assert sorted(path.name for path in newcomer.glob("*.*")) == ["data.npz", "my_model.py", "weights.pt"]
    model = load_model("my_model.py:build", weights=Path("weights.pt")).model
    chain = shoal.trace(model, shoal.load_data("npz:data.npz").example())
    assert [block.path for block in chain.blocks if block.removable] == [str(i) for i in range(2, 10)]


@pytest.mark.slow
def test_first_steps_as_they_stand(newcomer, monkeypatch):
    first_steps(newcomer)
    for line in commands_of(ROOT / "docs" / "first-steps.md")[:2]:
        monkeypatch.setattr(sys, "argv", line.split())  # who types a file's name consents to run it
        done = CliRunner().invoke(app, line.split()[1:])
        assert done.exit_code == 0, done.output
    _, _, program = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "first-steps.md").read_text(), re.DOTALL)
    scope = {}
    exec(program, scope)
    assert len(shoal.trace(scope["shorter"], shoal.load_data("npz:data.npz").example()).blocks) < 8


def test_the_gallery_shows_what_is_made_for_it():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    made = {*re.findall(r"--out \$\(GALLERY\)/(\S+)", makefile), "runs.html"}
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    shown = {name.removesuffix("/report.html") for name in re.findall(r"gallery/([\w/.-]+\.html)", text)}
    assert shown == made


def commands_of(page):
    """Every command line of Shoal in a page: in blocks of code and in line."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)  # from its first fence to its last
    blocks = [body for language, body in fenced if language in ("", "bash")]
    lines = [line.partition("#")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.strip() for line in [*lines, *re.findall(r"`(shoal [a-z][^`]*)`", text)] if line.startswith("shoal ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page):
    commands = get_command(app).commands
    for line in commands_of(page):
        name, *words = line.split()[1:]
        if name.startswith("-") or name.isupper():
            continue
        assert name in commands, line
        options = {flag for param in commands[name].params for flag in (*param.opts, *param.secondary_opts)}
        named = {word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)}
        assert named <= {*options, "--help"}, line


def test_the_readme_is_short_and_shows_what_it_promises():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 80
    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 10
    assert "docs/front-resnet56.svg" in text


def test_the_page_of_commands_names_every_command_and_source():
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for name in get_command(app).commands:
        assert f"shoal {name}" in text, name
    for table in (DATA, TEXT_SOURCES, [AUDIO], MODELS):
        for name in table:
            assert re.search(rf"`{name}(:|`)", text), name


def test_every_page_is_in_the_contents_of_the_site():
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    trees = re.findall(r"```\{toctree\}\n(.*?)```", text, re.DOTALL)
    listed = {line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")}
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.ipynb")]
    assert listed == {str(page.relative_to(ROOT / "docs").with_suffix("")) for page in pages} - {"index"}


def test_every_public_name_has_an_entry():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    entries = re.findall(r"^\.\. auto\w+:: shoal\.(\w+)$", text, re.MULTILINE)
    assert sorted(entries) == sorted(shoal.__all__)


def test_every_question_of_the_figures_names_its_command():
    text = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
    questions = re.findall(r"^##+ (.*\?)$", text, re.MULTILINE)
    rows = [line for line in text.splitlines() if line.startswith("| [")]
    assert len(questions) >= 9
    for question in questions:
        [row] = [line for line in rows if line.startswith(f"| [{question}](")]
        assert re.search(r"`(benchmarks/\w+\.py|shoal \w+)", row), row
    for name in re.findall(r"`([\w.*-]+\.json)`", "\n".join(rows)):
        assert list((ROOT / "benchmarks" / "results").glob(name)), name
