"""The arguments and options that commands share, each said once."""

from pathlib import Path
from typing import Annotated

import typer

MODEL = typer.Argument(
    metavar="MODEL",
    help="digits-resnet, torchvision:NAME, timm:NAME, hf:PATH_OR_ID, FILE.py:FUNCTION (runs that file), "
    "or an output folder of Shoal.",
)
DATA = typer.Argument(
    metavar="DATA",
    help="digits, cifar10:ROOT, cifar100:ROOT, svhn:ROOT, imagefolder:ROOT, npz:FILE, text:FILE_OR_FOLDER, "
    "or FILE.py:FUNCTION (runs that file).",
)
Weights = Annotated[
    Path | None, typer.Option("--weights", metavar="FILE", help="A state dict for MODEL: .safetensors, .pt or .pth.")
]
Mean = Annotated[str | None, typer.Option("--mean", metavar="R,G,B", help="Mean of pixels in 0..1, per channel.")]
Std = Annotated[str | None, typer.Option("--std", metavar="R,G,B", help="Standard deviation likewise.")]
Size = Annotated[int | None, typer.Option("--size", help="Resize images to this height and width, in pixels.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Read only so many samples of each part of the data.")]
Tokenizer = Annotated[
    Path | None,
    typer.Option("--tokenizer", metavar="PATH", help="For text: the tokenizer, where it is not beside the network."),
]
SequenceLength = Annotated[
    int | None,
    typer.Option("--sequence-length", min=4, help="For text: tokens in a sequence; 512, or all the network takes."),
]
Images = Annotated[
    int | None,
    typer.Option("--images", min=1, help="Calibration samples the choice is made on; 512, or 2048 with a budget."),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Output folder, new or empty, or that of the same unfinished command."),
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, mps; auto takes the first there is.")]
Seed = Annotated[int, typer.Option("--seed", help="Decides splits and augmentation.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Samples in a mini-batch; also the batch timed.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, all else on stderr.")]
TrustCode = Annotated[
    bool,
    typer.Option(
        "--trust-code", help="Run the files and fetch the networks that a folder or plan names, not only what is typed."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and about how long it takes.")]
ChannelsLast = Annotated[bool, typer.Option("--channels-last", help="Time images with the channels last in memory.")]
Include = Annotated[str | None, typer.Option("--include", metavar="PATTERNS", help="Only these blocks: layer3.*,...")]
Exclude = Annotated[str | None, typer.Option("--exclude", metavar="PATTERNS", help="Never these blocks.")]
Grain = Annotated[
    str,
    typer.Option("--grain", metavar="block|unit", help="What goes at a time: a block, or its attention or MLP alone."),
]
LatencyFrom = Annotated[
    str | None,
    typer.Option(
        "--latency-from",
        metavar="FILE",
        help="Latencies of another device: a table by `shoal latency`, or FILE.py:FUNCTION (runs that file).",
    ),
]
StandIns = Annotated[
    str | None,
    typer.Option(
        "--stand-ins",
        metavar="KINDS",
        help="Stand-ins to try: identity,conv3,...; +block,narrow adds students, which train, to the usual ones.",
    ),
]
StudentBudget = Annotated[
    str,
    typer.Option("--student-budget", metavar="5m|2000", help="How long all students together train: a time, or steps."),
]
Output = Annotated[
    list[str] | None,
    typer.Option("--output", metavar="NAME", help="An output that counts: logits, '[1]', aux. Repeat it for several."),
]
Unlabelled = Annotated[
    str | None,
    typer.Option("--unlabelled", metavar="DATA", help="Extra data to recover on; its labels are not looked at."),
]
