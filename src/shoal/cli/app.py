"""The command line: one function a subcommand."""

import dataclasses
import os
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from shoal.cli import options as opt
from shoal.cli.console import INTERRUPTED, Session, leave_closed_pipe

app = typer.Typer(
    name="shoal",
    help="Make deep residual networks shallow: find the blocks that do nothing, remove them, prove it, measure it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; wrong use ends in exit code 2 and, with --json, in a JSON document.

    Exit code 1 says that a goal was not reached and nothing else, though Python's own is 1 for every exception.
    """
    Console.on_broken_pipe = _leave_closed_pipe  # type: ignore[assignment, method-assign]  # rich leaves with 1
    try:
        code = _run()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        leave_closed_pipe(sys.stdout)
    except MemoryError:
        os.write(2, b"error: out of memory, also for saying more\n")
        code = 2
    raise SystemExit(code)


def _leave_closed_pipe(console: Console) -> None:
    leave_closed_pipe(sys.stderr if console.stderr else sys.stdout)


def _run() -> int:
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        return INTERRUPTED
    except typer.TyperException as error:
        return _wrong_use(error)
    return code if isinstance(code, int) else 0


def _wrong_use(error: typer.TyperException) -> int:
    if "--json" in sys.argv:
        said = error.format_message() if hasattr(error, "format_message") else str(error)
        Session(as_json=True).print_json({"error": {"kind": "usage", "message": said, "hint": "shoal --help"}})
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


@app.command()
def compress(
    context: typer.Context,
    model: Annotated[str | None, opt.MODEL] = None,
    data: Annotated[str | None, opt.DATA] = None,
    max_drop: Annotated[
        float | None, typer.Option("--max-drop", help="As many blocks as go within this drop, in points. Default 1.0.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="With --max-drop: blocks may be replaced too; the fastest plan within it.")
    ] = False,
    remove: Annotated[int | None, typer.Option("--remove", help="How many blocks to remove.")] = None,
    latency: Annotated[
        str | None, typer.Option("--latency", metavar="BUDGET", help="Fraction of the original's latency, or 12ms.")
    ] = None,
    macs: Annotated[str | None, typer.Option("--macs", metavar="BUDGET", help="Fraction of the MACs, or 1.2G.")] = None,
    params: Annotated[
        str | None, typer.Option("--params", metavar="BUDGET", help="Fraction of the parameters, or 3M.")
    ] = None,
    depth: Annotated[int | None, typer.Option("--depth", help="At most so many blocks left.")] = None,
    blocks: Annotated[str | None, typer.Option("--blocks", metavar="PATHS", help="These: layer1.3,layer2.4")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Only blocks proved to do nothing.")] = False,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Another goal for the network of an earlier run, by its tables."),
    ] = None,
    pick: Annotated[int | None, typer.Option("--pick", help="The plan with this number on the front.")] = None,
    grain: opt.Grain = "block",
    latency_from: opt.LatencyFrom = None,
    fold: Annotated[
        bool, typer.Option("--fold", help="Then fold batch norms, constants, linear chains: exact, for inference.")
    ] = False,
    recover: Annotated[
        str | None,
        typer.Option(
            "--recover",
            metavar="10m|2000|none",
            help="Then learn from the original: a time, or steps. Default 5m by plan, else none.",
        ),
    ] = None,
    unlabelled: opt.Unlabelled = None,
    try_plans: Annotated[
        int,
        typer.Option(
            "--try-plans",
            min=0,
            metavar="N",
            help="So many plans recover for a tenth of the budget each before one is chosen.",
        ),
    ] = 0,
    stand_ins: opt.StandIns = None,
    student_budget: opt.StudentBudget = "5m",
    output: opt.Output = None,
    include: opt.Include = None,
    exclude: opt.Exclude = None,
    weights: opt.Weights = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    limit: opt.Limit = None,
    tokenizer: opt.Tokenizer = None,
    sequence_length: opt.SequenceLength = None,
    images: opt.Images = None,
    channels_last: opt.ChannelsLast = False,
    out: opt.Out = None,
    device: opt.Device = "auto",
    seed: opt.Seed = 0,
    batch_size: opt.BatchSize = 128,
    dry_run: opt.DryRun = False,
    trust_code: opt.TrustCode = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> int:
    """Make a network shallower: the new network, its recipe, a certificate and a report.

    Blocks that do little are removed. With a budget (--latency, --macs, --params, --depth), or with --max-drop and
    --replace, spans of blocks may also be replaced by stand-ins fitted in closed form, chosen by plan. Its tables stay
    in the output folder: --from DIR takes another goal, or another point of the front, in little time. What a plan
    has cut learns from the original for five minutes, without labels, unless --recover says otherwise.

    Without MODEL and DATA it works on the embedded default. Exit code 1: the goal was not reached.
    """
    session = Session(as_json=as_json, debug=debug, trust_code=trust_code)
    with session.guarded():
        from shoal.cli.compress import RECOVERY, CompressRequest, as_grain, check_pair, run_compress
        from shoal.cli.loading import DataOptions, names
        from shoal.cli.previous_request import load_previous_request
        from shoal.pipeline.goals import check_options, parse_goal
        from shoal.recover import read_budget

        goal = parse_goal(
            {
                "remove": remove,
                "max_drop": max_drop,
                "blocks": names(blocks) if blocks is not None else None,
                "exact": exact,
                "latency": latency,
                "macs": macs,
                "params": params,
                "depth": depth,
                "pick": pick,
                "include": names(include),
                "exclude": names(exclude),
                "replace": replace,
                "grain": as_grain(grain),
            },
            spell=_flag,
        )
        asked = CompressRequest(
            model=model or "",
            data=data or "",
            weights=weights,
            goal=goal,
            data_options=DataOptions(mean, std, size, limit, seed, batch_size, tokenizer, sequence_length),
            images=images or (2048 if goal.by_plan else 512),
            out=out,
            device=device,
            channels_last=channels_last,
            dry_run=dry_run,
            command=_command(),
            fold=fold,
            latency_from=latency_from,
            recover=recover if recover is not None else RECOVERY if goal.by_plan else None,
            recovery_asked=recover is not None or unlabelled is not None,
            unlabelled=unlabelled,
            try_plans=try_plans,
            stand_ins=stand_ins,
            student_budget=student_budget,
            output=output,
        )
        given = _given(context)
        idle = {"recover"} if read_budget(recover) is None else set()
        idle |= {"student_budget"} if from_ is not None else set()  # which is held against that run
        check_options(goal, given - idle, asked.config().stand_ins, _flag)
        if from_ is not None:
            return run_compress(session, load_previous_request(from_, asked, given))
        spec, source = check_pair(model, data)
        return run_compress(session, dataclasses.replace(asked, model=spec, data=source))


@app.command()
def latency(
    model: Annotated[str, opt.MODEL],
    data: Annotated[str | None, opt.DATA] = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The table to write.")] = Path("latency.json"),
    shape: Annotated[
        str | None, typer.Option("--shape", metavar="C,H,W", help="Input shape of one sample, where DATA is left out.")
    ] = None,
    weights: opt.Weights = None,
    size: opt.Size = None,
    channels_last: opt.ChannelsLast = False,
    device: opt.Device = "auto",
    batch_size: opt.BatchSize = 128,
    trust_code: opt.TrustCode = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> int:
    """Time every kind of block and stand-in of a network on this device, for `compress --latency-from` elsewhere."""
    session = Session(as_json=as_json, debug=debug, trust_code=trust_code)
    with session.guarded():
        from shoal.cli.latency import LatencyRequest, run_latency
        from shoal.cli.loading import DataOptions

        options = DataOptions(size=size, batch_size=batch_size)
        return run_latency(session, LatencyRequest(model, data, weights, shape, options, out, device, channels_last))


@app.command()
def trace(
    model: Annotated[str, opt.MODEL],
    data: Annotated[str | None, opt.DATA] = None,
    shape: Annotated[
        str | None, typer.Option("--shape", metavar="C,H,W", help="Input shape of one sample, where DATA is left out.")
    ] = None,
    weights: opt.Weights = None,
    size: opt.Size = None,
    trust_code: opt.TrustCode = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> int:
    """Show the chain of residual blocks: what can be removed, and why not."""
    session = Session(as_json=as_json, debug=debug, trust_code=trust_code)
    with session.guarded():
        from shoal.blocks import analyze
        from shoal.cli.loading import DataOptions, example_for, open_data, open_network
        from shoal.pipeline import block_records
        from shoal.report import show_chain

        opened = open_network(session, model, weights)
        source = open_data(session, data, DataOptions(size=size), opened) if data else None
        chain = analyze(opened.model, example_for(opened, source, shape)).chain
        if session.as_json:
            session.print_json(chain.to_dict())
        else:
            show_chain(block_records(chain), session.console)
            if chain.note:
                session.say(chain.note)
        return 0


@app.command()
def scan(
    model: Annotated[str | None, opt.MODEL] = None,
    data: Annotated[str | None, opt.DATA] = None,
    also: Annotated[
        str | None, typer.Option("--also", metavar="DATA2", help="The same ablations on a second data set.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "test",
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", help="What counts as nothing: points of top-1 (1.0); without labels nats (0.01)."),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Stop trying what is clear early, and say so.")] = False,
    output: opt.Output = None,
    stack: Annotated[
        int, typer.Option("--stack", min=1, help="Removals that share a forward; 1 is exact to the bit.")
    ] = 1,
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="Set every kernel to zero too.")] = True,
    scores: Annotated[bool, typer.Option("--scores/--no-scores", help="Score the blocks too.")] = True,
    weights: opt.Weights = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    limit: opt.Limit = None,
    tokenizer: opt.Tokenizer = None,
    sequence_length: opt.SequenceLength = None,
    out: opt.Out = None,
    device: opt.Device = "auto",
    seed: opt.Seed = 0,
    batch_size: opt.BatchSize = 128,
    dry_run: opt.DryRun = False,
    trust_code: opt.TrustCode = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> int:
    """What is every block, branch and kernel worth? Tables, plots, no change to the network."""
    session = Session(as_json=as_json, debug=debug, trust_code=trust_code)
    with session.guarded():
        from shoal.cli.compress import check_pair
        from shoal.cli.loading import DataOptions
        from shoal.cli.scan import ScanRequest, run_scan
        from shoal.scanning import ScanSettings

        spec, source = check_pair(model, data, "scan")
        request = ScanRequest(
            model=spec,
            data=source,
            also=also,
            weights=weights,
            split=split,
            settings=ScanSettings(tolerance, fast, stack, layers, scores, output),
            data_options=DataOptions(mean, std, size, limit, seed, batch_size, tokenizer, sequence_length),
            out=out,
            device=device,
            dry_run=dry_run,
            command=_command(),
        )
        return run_scan(session, request)


@app.command()
def certify(
    a: Annotated[str, typer.Argument(metavar="A", help="The original, as MODEL.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The other network, as MODEL.")],
    data: Annotated[str, opt.DATA],
    weights: opt.Weights = None,
    weights_b: Annotated[Path | None, typer.Option("--weights-b", metavar="FILE", help="A state dict for B.")] = None,
    tolerance: Annotated[
        float | None, typer.Option("--tolerance", help="Absolute; 1e-5 of the largest output by default.")
    ] = None,
    output: opt.Output = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    limit: opt.Limit = None,
    device: opt.Device = "auto",
    seed: opt.Seed = 0,
    batch_size: opt.BatchSize = 128,
    trust_code: opt.TrustCode = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> int:
    """Are two networks the same function, and on what evidence? Exit code 1: they are different."""
    session = Session(as_json=as_json, debug=debug, trust_code=trust_code)
    with session.guarded():
        from shoal.cli.loading import DataOptions, open_data, open_network, pick_device
        from shoal.report import show_certificate
        from shoal.surgery import certify as certified

        where = pick_device(device)
        left = open_network(session, a, weights, where)
        right = open_network(session, b, weights_b, where)
        source = open_data(session, data, DataOptions(mean, std, size, limit, seed, batch_size), left)
        certificate = certified(left.model, right.model, source.test(), tolerance=tolerance, output=output)
        if session.as_json:
            session.print_json(certificate.model_dump(mode="json"))
        else:
            show_certificate(certificate, session.console)
        return 1 if certificate.verdict == "different" else 0


@app.command()
def apply(
    model: Annotated[str, opt.MODEL],
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan.json.")],
    weights: opt.Weights = None,
    out: opt.Out = None,
    trust_code: opt.TrustCode = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> int:
    """Carry a plan out on a network and write the result."""
    session = Session(as_json=as_json, debug=debug, trust_code=trust_code)
    with session.guarded():
        from shoal.cli.tools import run_apply

        return run_apply(session, model, plan, weights, out)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="An output folder of Shoal.")],
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx, checked with onnxruntime.")] = False,
    torch_export: Annotated[
        bool, typer.Option("--torch-export", help="Write model.pt2, which torch loads without Shoal.")
    ] = False,
    trust_code: opt.TrustCode = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> int:
    """Write the network of an output folder for others; each file is loaded again and compared."""
    session = Session(as_json=as_json, debug=debug, trust_code=trust_code)
    with session.guarded():
        from shoal.cli.tools import run_export

        return run_export(session, folder, onnx=onnx, torch_export=torch_export or not onnx)


@app.command()
def bench(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="An output folder of Shoal.")],
    batch_size: opt.BatchSize = 128,
    channels_last: opt.ChannelsLast = False,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Timed seconds per network and batch.")] = 3.0,
    device: opt.Device = "auto",
    trust_code: opt.TrustCode = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> int:
    """Time original and compressed side by side, at batch 1 and at --batch-size."""
    session = Session(as_json=as_json, debug=debug, trust_code=trust_code)
    with session.guarded():
        from shoal.cli.tools import run_bench

        return run_bench(session, folder, batch_size, channels_last=channels_last, seconds=seconds, device=device)


@app.command()
def distill(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="The network that learns, as MODEL.")],
    data: Annotated[str, opt.DATA],
    teacher: Annotated[str, typer.Option("--teacher", metavar="MODEL", help="The network it learns from.")],
    budget: Annotated[
        str, typer.Option("--budget", metavar="10m|2000", help="How long: a time, or a number of steps.")
    ] = "5m",
    unlabelled: opt.Unlabelled = None,
    rate: Annotated[
        float | None, typer.Option("--lr", help="The highest learning rate; found by a short test by default.")
    ] = None,
    features: Annotated[
        float | None,
        typer.Option(
            "--features",
            min=0,
            help="Weight of the features' error; 0: answers alone. Default: 64 with SGD, 4 with AdamW.",
        ),
    ] = None,
    labels: Annotated[float, typer.Option("--labels", min=0, help="Weight of the labels; 0 needs none.")] = 0.0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Mixed precision.")] = False,
    weights: opt.Weights = None,
    teacher_weights: Annotated[
        Path | None, typer.Option("--teacher-weights", metavar="FILE", help="A state dict for the teacher.")
    ] = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    limit: opt.Limit = None,
    tokenizer: opt.Tokenizer = None,
    sequence_length: opt.SequenceLength = None,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Channels last in memory.")] = False,
    out: opt.Out = None,
    device: opt.Device = "auto",
    seed: opt.Seed = 0,
    batch_size: opt.BatchSize = 128,
    dry_run: opt.DryRun = False,
    trust_code: opt.TrustCode = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> int:
    """Teach a network to answer as another one does, without labels: by its answers and its features.

    What comes out is nearest to the teacher on validation, never further than before; test is read once, for the
    record. The same command on an unfinished folder goes on. Exit code 1: nothing was won.
    """
    session = Session(as_json=as_json, debug=debug, trust_code=trust_code)
    with session.guarded():
        from shoal.cli.distill import DistillRequest, run_distill
        from shoal.cli.loading import DataOptions

        request = DistillRequest(
            student=student,
            teacher=teacher,
            data=data,
            unlabelled=unlabelled,
            weights=weights,
            teacher_weights=teacher_weights,
            budget=budget,
            rate=rate,
            features=features,
            labels=labels,
            bf16=bf16,
            channels_last=channels_last,
            data_options=DataOptions(mean, std, size, limit, seed, batch_size, tokenizer, sequence_length),
            out=out,
            device=device,
            dry_run=dry_run,
            command=_command(),
        )
        return run_distill(session, request)


@app.command()
def train(
    model: Annotated[str | None, opt.MODEL] = None,
    data: Annotated[str | None, opt.DATA] = None,
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", help="Branches under it add nothing; 0 trains the plain network.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="digits, cifar10, cifar100, svhn, imagenet; that of DATA by default.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Instead of the recipe's.")] = None,
    rate: Annotated[float | None, typer.Option("--lr", help="The first learning rate.")] = None,
    decay: Annotated[float | None, typer.Option("--decay", help="The weight decay.")] = None,
    side: Annotated[bool, typer.Option("--side/--no-side", help="Side supervision in the middle.")] = True,
    freeze_after: Annotated[
        int | None, typer.Option("--freeze-after", min=1, help="Epochs a gate stays closed before its block goes.")
    ] = None,
    faithful: Annotated[
        bool, typer.Option("--faithful", help="As in the paper: blocks go only when their weights have died.")
    ] = False,
    hold: Annotated[int, typer.Option("--hold", min=0, help="Epochs with open gates first.")] = 0,
    rise: Annotated[int, typer.Option("--rise", min=0, help="Epochs in which epsilon then rises.")] = 0,
    bf16: Annotated[bool, typer.Option("--bf16", help="Mixed precision.")] = False,
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Channels last in memory.")] = False,
    compile_: Annotated[bool, typer.Option("--compile", help="Through torch.compile.")] = False,
    checkpoint_every: Annotated[int, typer.Option("--checkpoint-every", min=1, help="Epochs.")] = 1,
    compare: Annotated[
        bool, typer.Option("--compare", help="Train the plain network and one with a far too large epsilon beside it.")
    ] = False,
    also_epsilon: Annotated[
        str | None, typer.Option("--also-epsilon", metavar="A,B", help="Other values to hold this run against.")
    ] = None,
    weights: opt.Weights = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    size: opt.Size = None,
    limit: opt.Limit = None,
    out: opt.Out = None,
    device: opt.Device = "auto",
    seed: opt.Seed = 0,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=2, help="Instead of the recipe's.")] = None,
    dry_run: opt.DryRun = False,
    trust_code: opt.TrustCode = False,
    as_json: opt.Json = False,
    debug: opt.Debug = False,
) -> int:
    """Train a network so that its useless blocks vanish (epsilon-ResNet), and take them out on the way.

    Without MODEL and DATA it trains an over-deep network on the embedded digits. MODEL gives the structure; weights are
    random from --seed, or those of --weights. Exit code 1: no block was lost.
    """
    session = Session(as_json=as_json, debug=debug, trust_code=trust_code)
    with session.guarded():
        from shoal.cli.loading import DataOptions
        from shoal.cli.train import TrainRequest, run_train

        request = TrainRequest(
            model=model,
            data=data,
            weights=weights,
            recipe=recipe,
            epsilon=epsilon,
            epochs=epochs,
            rate=rate,
            decay=decay,
            side=side,
            freeze_after=freeze_after,
            faithful=faithful,
            hold=hold,
            rise=rise,
            bf16=bf16,
            channels_last=channels_last,
            compile=compile_,
            checkpoint_every=checkpoint_every,
            compare=compare,
            also_epsilon=also_epsilon,
            batch_size=batch_size,
            data_options=DataOptions(mean, std, size, limit, seed),
            out=out,
            device=device,
            dry_run=dry_run,
            command=_command(),
        )
        return run_train(session, request)


def _given(context: typer.Context) -> set[str]:
    """The options that stand on the command line, by parameter name."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name.rstrip("_") for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _command() -> str:
    return "shoal " + shlex.join(sys.argv[1:])
