"""The command line: one function a subcommand."""

import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from shoal.cli import options
from shoal.cli.console import INTERRUPTED, Session, leave_closed_pipe
from shoal.cli.parameters import command
from shoal.cli.signals import Ending, ending_in_order

app = typer.Typer(
    name="shoal",
    help="Make deep residual networks shallow: find the blocks that do nothing, remove them, prove it, measure it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; wrong use ends in exit code 2 and, with --json, in a JSON document.

    Exit code 1 says that a goal was not reached and nothing else, though Python's own is 1 for every exception.
    """
    if "_SHOAL_COMPLETE" in os.environ:
        os.environ["COLUMNS"] = "10000"  # a description that is wrapped would be read as further candidates
    Console.on_broken_pipe = _leave_closed_pipe  # type: ignore[assignment, method-assign]  # rich leaves with 1
    try:
        with ending_in_order() as ending:
            code = _run(ending)
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        code = _interrupted(ending)
    except BrokenPipeError:
        leave_closed_pipe(sys.stdout)
    except MemoryError:
        os.write(2, b"error: out of memory, also for saying more\n")
        code = 2
    raise SystemExit(code)


def _leave_closed_pipe(console: Console) -> None:
    leave_closed_pipe(sys.stderr if console.stderr else sys.stdout)


def _run(ending: Ending) -> int:
    try:
        code = app(prog_name="shoal", standalone_mode=False)
    except typer.Abort:
        code = INTERRUPTED
    except typer.TyperException as error:
        return _wrong_use(error)
    if code == INTERRUPTED:  # typer makes a number of what a command at work would have reported and left by
        return _interrupted(ending)
    return code if isinstance(code, int) else 0


def _interrupted(ending: Ending) -> int:
    """Before a command is at work, or after it."""
    os.write(2, b"interrupted.\n")
    return ending.exit_code or INTERRUPTED


def _wrong_use(error: typer.TyperException) -> int:
    if "--json" in sys.argv:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        Session(as_json=True).print_json({"error": {"kind": "usage", "message": message, "hint": "shoal --help"}})
    elif hasattr(error, "show"):
        error.show()
    return 2


def _version(value: bool) -> None:
    if value:
        Session().say(f"shoal {version('shoal')}")
        raise typer.Exit


@app.callback()
def shoal(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Make deep residual networks shallow."""


@command(app)
def compress(session: Session, request: options.CompressOptions) -> int:
    """Make a network shallower: the new network, its recipe, a certificate and a report.

    Blocks that do little are removed. With a budget (--latency, --macs, --params, --depth), or with --max-drop and
    --replace, spans of blocks may also be replaced by small modules fitted in closed form, chosen by plan. Its tables
    stay in the output folder: --from DIR takes another goal, or another point of the front, in little time. After a
    plan the network is distilled from the original for five minutes, without labels, unless --recover says otherwise.

    Without MODEL and DATA it works on the embedded default. Exit code 1: the goal was not reached.
    """
    from shoal.cli.compress import compress_request, run_compress
    from shoal.cli.loading import tracked

    with tracked(request.track):
        return run_compress(session, compress_request(session, request))


@command(app)
def latency(session: Session, request: options.LatencyRequest) -> int:
    """Time every kind of block and replacement of a network on this device, for `compress --latency-from` elsewhere."""
    from shoal.cli.latency import run_latency

    return run_latency(session, request)


@command(app)
def trace(session: Session, request: options.TraceRequest) -> int:
    """Show the chain of residual blocks: what can be removed, and why not."""
    from shoal.cli.tools import run_trace

    return run_trace(session, request)


@command(app)
def scan(session: Session, request: options.ScanRequest) -> int:
    """Measure what every block, branch and kernel is worth: tables and plots, no change to the network."""
    from shoal.cli.scan import run_scan

    return run_scan(session, request)


@command(app)
def certify(session: Session, request: options.CertifyRequest) -> int:
    """Are two networks the same function, and on what evidence? Exit code 1: they are different."""
    from shoal.cli.tools import run_certify

    return run_certify(session, request)


@command(app)
def apply(session: Session, request: options.ApplyRequest) -> int:
    """Carry a plan out on a network and write the result."""
    from shoal.cli.tools import run_apply

    return run_apply(session, request)


@command(app)
def export(session: Session, request: options.ExportRequest) -> int:
    """Write the network of an output folder for others; each file is loaded again and compared."""
    from shoal.cli.tools import run_export

    return run_export(session, request)


@command(app)
def bench(session: Session, request: options.BenchRequest) -> int:
    """Time original and compressed side by side, at batch 1 and at --batch-size."""
    from shoal.cli.tools import run_bench

    return run_bench(session, request)


@command(app)
def eval(session: Session, request: options.EvalRequest) -> int:
    """Ask original and compressed language model the tasks of lm-eval, side by side, into record and report."""
    from shoal.cli.evaluate import run_eval

    return run_eval(session, request)


@command(app)
def distill(session: Session, request: options.DistillRequest) -> int:
    """Teach a network to answer as another one does, without labels: from its outputs and its features.

    What comes out is nearest to the teacher on validation, never further than before; test is read once, for the
    record. The same command on an unfinished folder resumes it. Exit code 1: nothing was gained.
    """
    from shoal.cli.distill import run_distill
    from shoal.cli.loading import tracked

    with tracked(request.track):
        return run_distill(session, request)


@command(app)
def report(session: Session, request: options.ReportRequest) -> int:
    """Compare several runs of `shoal compress` on one page: one front, one table."""
    from shoal.cli.tools import run_report

    return run_report(session, request)


@command(app)
def push(session: Session, request: options.PushRequest) -> int:
    """Put an output folder on the hub of Hugging Face: network, model card, recipe, figures, report."""
    from shoal.cli.tools import run_push

    return run_push(session, request)


@command(app)
def doctor(session: Session, request: options.DoctorRequest) -> int:
    """Show versions and devices, and what is missing for what. Exit code 2: Shoal itself lacks something."""
    from shoal.cli.doctor import run_doctor

    return run_doctor(session, request)


@command(app)
def list(session: Session, request: options.ListRequest) -> int:
    """List what there is by name: models, data, replacements, metrics, scores; plugins too."""
    from shoal.cli.doctor import run_list

    return run_list(session, request)


@command(app)
def train(session: Session, request: options.TrainRequest) -> int:
    """Train a network so that its useless blocks vanish (epsilon-ResNet), and remove them on the way.

    Without MODEL and DATA it trains an over-deep network on the embedded digits. MODEL gives the structure; weights are
    random from --seed, or those of --weights. Exit code 1: no block was removed.
    """
    from shoal.cli.loading import tracked
    from shoal.cli.train import run_train

    with tracked(request.track):
        return run_train(session, request)
