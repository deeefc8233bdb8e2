"""What each command takes: one dataclass a command, whose fields are its arguments and options."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.cli.parameters import argument, command_line, nested, option

if TYPE_CHECKING:
    from shoal.scanning import ScanConfig

_MODEL_HELP = (
    "digits-resnet, torchvision:NAME, timm:NAME, hf:PATH_OR_ID, FILE.py:FUNCTION (runs that file), "
    "or an output folder of Shoal."
)
_DATA_HELP = (
    "digits, cifar10:ROOT, cifar100:ROOT, svhn:ROOT, imagefolder:ROOT, npz:FILE, text:FILE_OR_FOLDER, "
    "hf-data:NAME[:SPLIT], "
    "or FILE.py:FUNCTION (runs that file)."
)
_UNLABELLED = partial(
    option, "--unlabelled", "Extra data to recover on; its labels are not used.", None, metavar="DATA"
)
_WEIGHTS = partial(option, "--weights", "A state dict for MODEL: .safetensors, .pt or .pth.", None, metavar="FILE")
_SIZE = partial(option, "--size", "Resize images to this height and width, in pixels.", None)
_BATCH_SIZE = partial(option, "--batch-size", "Samples in a mini-batch; also the batch that is timed.", 128, min=1)
_CHANNELS_LAST = partial(option, "--channels-last", "Time images with the channels last in memory.", False)
_TRAIN_CHANNELS_LAST = partial(option, "--channels-last", "Keep images with the channels last in memory.", False)
_BF16 = partial(option, "--bf16", "Mixed precision.", False)
_DEVICE = partial(
    option,
    "--device",
    "cpu, cuda, cuda:1, mps; auto takes the first available.",
    "auto",
    values=("auto", "cpu", "cuda", "mps"),
)
_OUT = partial(
    option, "--out", "Output folder: new, empty, or that of the same unfinished command.", None, metavar="DIR"
)
_LORA = partial(
    option, "--lora", "Recover by LoRA of this rank (peft), merged at the end; 0: all weights learn.", 0, min=0
)
_ACCUMULATE = partial(
    option, "--accumulate", "Take a mini-batch in so many parts: less memory, the same steps.", 1, min=1, metavar="N"
)
_CACHE_TEACHER = partial(
    option,
    "--cache-teacher",
    "Keep the K largest scores of the teacher on disk first; then it need not fit beside the student.",
    0,
    min=0,
    metavar="K",
)
_CHECKPOINTING = partial(
    option, "--checkpointing", "Compute blocks once more in the backward pass: less memory, longer steps.", False
)
_DRY_RUN = partial(option, "--dry-run", "Say what would be done and about how long it would take.", False)
_OUTPUT = partial(
    option, "--output", "An output that counts: logits, '[1]', aux. Repeat it for several.", None, metavar="NAME"
)
_SHAPE = partial(option, "--shape", "Input shape of one sample, where DATA is left out.", None, metavar="C,H,W")
# What `RecoveryConfig.race` is by default; the pipeline is not imported to show a help.
RACE_PLANS = 16
_TASK = partial(
    option,
    "--task",
    "What the network is for: classification, segmentation, detection, restoration, embedding, regression, seq2seq or"
    " denoising; or FILE.py:FUNCTION that returns a task (runs that file); recognised by default.",
    None,
    values=(
        *("classification", "denoising", "detection", "embedding", "regression", "restoration", "segmentation"),
        "seq2seq",
    ),
)
_TRACK = partial(
    option,
    "--track",
    "Also send the metrics of training to tensorboard, wandb, mlflow or trackio.",
    None,
    metavar="NAMES",
    values=("mlflow", "tensorboard", "trackio", "wandb"),
)
_FOLDER = partial(argument, "OUT", "An output folder of Shoal.")


@dataclass(frozen=True)
class DataOptions:
    """How DATA is read."""

    mean: str | None = option("--mean", "Mean of the pixels in 0..1, per channel.", None, metavar="R,G,B")
    std: str | None = option("--std", "Their standard deviation, likewise.", None, metavar="R,G,B")
    size: int | None = _SIZE()
    limit: int | None = option("--limit", "Read at most this many samples of each part of the data.", None)
    seed: int = option("--seed", "Decides splits and augmentation.", 0, min=-(2**62), max=2**62)
    batch_size: int = _BATCH_SIZE()
    tokenizer: Path | None = option(
        "--tokenizer",
        "For text and sound: the tokenizer or processor, where it is not in the network's folder.",
        None,
        metavar="PATH",
    )
    sequence_length: int | None = option(
        "--sequence-length", "For text: tokens in a sequence; 512, or all the network takes.", None, min=4
    )


@dataclass(frozen=True)
class WorkerOptions:
    """Who measures candidates."""

    workers: int | None = option(
        "--workers", "Measure candidates in so many processes (Ray); results are the same.", None, min=1, metavar="N"
    )
    ray: str | None = option(
        "--ray", "Measure candidates on a running Ray cluster: HOST:PORT, or auto.", None, metavar="ADDRESS"
    )
    send_code: bool = option(
        "--send-code", "With --ray: send FILE.py of MODEL and DATA to the nodes, and run it there.", False
    )


@dataclass(frozen=True)
class GoalOptions:
    """What `shoal compress` is to reach."""

    max_drop: float | None = option(
        "--max-drop",
        "Remove as many blocks as possible with at most this accuracy drop, in points. Default 1.0.",
        None,
    )
    replace: bool = option(
        "--replace", "With --max-drop: blocks may be replaced as well; the fastest plan within the drop.", False
    )
    remove: int | None = option("--remove", "Remove this many blocks.", None)
    latency: str | None = option(
        "--latency", "At most this fraction of the original's latency, or 12ms.", None, metavar="BUDGET"
    )
    macs: str | None = option("--macs", "At most this fraction of the MACs, or 1.2G.", None, metavar="BUDGET")
    params: str | None = option("--params", "At most this fraction of the parameters, or 3M.", None, metavar="BUDGET")
    depth: int | None = option("--depth", "Keep at most N blocks; with --grain unit, N units.", None, metavar="N")
    blocks: str | None = option("--blocks", "Remove these: layer1.3,layer2.4", None, metavar="PATHS")
    exact: bool = option("--exact", "Remove only blocks that are proved to do nothing.", False)
    pick: int | None = option("--pick", "Take the plan with this number on the front.", None)
    grain: str = option(
        "--grain",
        "What is removed at a time: a block, or its attention or MLP alone.",
        "block",
        metavar="block|unit",
        values=("block", "unit"),
    )
    include: str | None = option(
        "--include", "Only these blocks: layer3.*,...; with --grain unit also *.mlp.", None, metavar="PATTERNS"
    )
    exclude: str | None = option("--exclude", "Never these blocks.", None, metavar="PATTERNS")


@dataclass(frozen=True, kw_only=True)
class CompressOptions:
    """What `shoal compress` takes."""

    model: str | None = argument("MODEL", _MODEL_HELP, None)
    data: str | None = argument("DATA", _DATA_HELP, None)
    goal: GoalOptions = nested(GoalOptions)
    from_: Path | None = option(
        "--from", "Another goal for the network of an earlier run, by its tables.", None, metavar="DIR"
    )
    latency_from: str | None = option(
        "--latency-from",
        "Latencies of another device: a table by `shoal latency`, or FILE.py:FUNCTION (runs that file).",
        None,
        metavar="FILE",
    )
    refit: bool = option(
        "--refit",
        "After a removal fit what stays, in closed form, where that does less damage; plans always do.",
        False,
    )
    fold: bool = option("--fold", "Then fold batch norms, constants, linear chains: exact, for inference.", False)
    recover: str | None = option(
        "--recover",
        "Then distill from the original for this time or number of steps. Default 5m by plan, else none.",
        None,
        metavar="10m|2000|none",
    )
    lora: int = _LORA()
    accumulate: int = _ACCUMULATE()
    cache_teacher: int = _CACHE_TEACHER()
    checkpointing: bool = _CHECKPOINTING()
    bf16: bool = option("--bf16", "Recover in mixed precision.", False)
    unlabelled: str | None = _UNLABELLED()
    self_data: int = option(
        "--self-data",
        "Recover also on N sequences that the original, a language model, writes itself.",
        0,
        min=0,
        metavar="N",
    )
    race: int = option(
        "--race",
        "Let up to N plans contend by short distillations, which take part of --recover; 0 for none.",
        RACE_PLANS,
        min=0,
        metavar="N",
    )
    try_plans: int | None = option("--try-plans", "The former name of --race.", None, min=0, metavar="N", hidden=True)
    stand_ins: str | None = option(
        "--stand-ins",
        "Replacements to try: identity,conv3,...; +block,narrow adds students, which are trained, to the usual ones.",
        None,
        metavar="KINDS",
    )
    student_budget: str = option(
        "--student-budget",
        "How long all students together are trained: a time, or steps.",
        "5m",
        metavar="5m|2000",
    )
    output: list[str] | None = _OUTPUT()
    task: str | None = _TASK()
    weights: Path | None = _WEIGHTS()
    data_options: DataOptions = nested(DataOptions, omit=("batch_size",))
    batch_size: str = option(
        "--batch-size",
        "Samples in a mini-batch; also the batch that is timed. 1,128: both are timed, and the worst counts.",
        "128",
        metavar="N[,N]",
    )
    track: str | None = _TRACK()
    images: int | None = option(
        "--images", "Calibration samples that blocks are chosen on; 512, or 2048 with a budget.", None, min=1
    )
    channels_last: bool = _CHANNELS_LAST()
    worker_options: WorkerOptions = nested(WorkerOptions)
    out: Path | None = _OUT()
    device: str = _DEVICE()
    dry_run: bool = _DRY_RUN()
    command: str = command_line()


@dataclass(frozen=True, kw_only=True)
class LatencyRequest:
    """What `shoal latency` takes."""

    model: str = argument("MODEL", _MODEL_HELP)
    data: str | None = argument("DATA", _DATA_HELP, None)
    out: Path = option("--out", "The table to write.", Path("latency.json"), metavar="FILE")
    shape: str | None = _SHAPE()
    weights: Path | None = _WEIGHTS()
    data_options: DataOptions = nested(
        DataOptions, omit=("mean", "std", "limit", "seed", "tokenizer", "sequence_length")
    )
    channels_last: bool = _CHANNELS_LAST()
    worker_options: WorkerOptions = nested(WorkerOptions)
    device: str = _DEVICE()


@dataclass(frozen=True, kw_only=True)
class TraceRequest:
    """What `shoal trace` takes."""

    model: str = argument("MODEL", _MODEL_HELP)
    data: str | None = argument("DATA", _DATA_HELP, None)
    shape: str | None = _SHAPE()
    weights: Path | None = _WEIGHTS()
    size: int | None = _SIZE()


@dataclass(frozen=True, kw_only=True)
class ScanRequest:
    """What `shoal scan` takes."""

    model: str | None = argument("MODEL", _MODEL_HELP, None)
    data: str | None = argument("DATA", _DATA_HELP, None)
    also: str | None = option("--also", "The same ablations on a second data set.", None, metavar="DATA2")
    split: str = option("--split", "train, validation or test.", "test", values=("train", "validation", "test"))
    tolerance: float | None = option(
        "--tolerance", "Equivalence margin: points of top-1 (1.0); without labels nats (0.01).", None
    )
    fast: bool = option("--fast", "Stop early where a verdict is clear, and say so.", False)
    output: list[str] | None = _OUTPUT()
    task: str | None = _TASK()
    stack: int = option("--stack", "Removals that share a forward pass; 1 is exact to the bit.", 1, min=1)
    layers: bool = option("--layers/--no-layers", "Also set every kernel to zero.", True)
    scores: bool = option("--scores/--no-scores", "Also score the blocks.", True)
    weights: Path | None = _WEIGHTS()
    data_options: DataOptions = nested(DataOptions)
    worker_options: WorkerOptions = nested(WorkerOptions)
    out: Path | None = _OUT()
    device: str = _DEVICE()
    dry_run: bool = _DRY_RUN()
    command: str = command_line()

    @property
    def settings(self) -> "ScanConfig":
        """How to scan; the task comes later, since a file may have to be run for it."""
        from shoal.scanning import ScanConfig

        return ScanConfig(self.tolerance, self.fast, self.stack, self.layers, self.scores, self.output)


@dataclass(frozen=True, kw_only=True)
class CertifyRequest:
    """What `shoal certify` takes."""

    a: str = argument("A", "The original, as MODEL.")
    b: str = argument("B", "The other network, as MODEL.")
    data: str = argument("DATA", _DATA_HELP)
    weights: Path | None = _WEIGHTS()
    weights_b: Path | None = option("--weights-b", "A state dict for B.", None, metavar="FILE")
    tolerance: float | None = option("--tolerance", "Absolute; 1e-5 of the largest output by default.", None)
    output: list[str] | None = _OUTPUT()
    data_options: DataOptions = nested(DataOptions, omit=("tokenizer", "sequence_length"))
    device: str = _DEVICE()


@dataclass(frozen=True, kw_only=True)
class ApplyRequest:
    """What `shoal apply` takes."""

    model: str = argument("MODEL", _MODEL_HELP)
    plan: Path = argument("PLAN", "A plan.json.")
    any_weights: bool = option(
        "--any-weights",
        "The plan may come from MODEL with its weights in another form, such as a quantised one.",
        False,
    )
    weights: Path | None = _WEIGHTS()
    out: Path | None = _OUT()


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """What `shoal export` takes."""

    folder: Path = _FOLDER()
    onnx: bool = option("--onnx", "Write model.onnx, checked with onnxruntime.", False)
    opset: int | None = option("--opset", "For ONNX: version of the operators; torch's choice by default.", None, min=7)
    dynamic: bool = option("--dynamic/--static", "For ONNX: leave the batch size free.", True)
    torch_export: bool = option("--torch-export", "Write model.pt2, which torch loads without Shoal.", False)
    hf: bool = option("--hf", "Write hf/, which plain transformers loads.", False)
    nemotron_nas: bool = option(
        "--nemotron-nas", "Write nemotron-nas/ for vLLM, TensorRT-LLM and MLX: layers may lack attention or MLP.", False
    )
    gguf: bool = option("--gguf", "Write model.gguf for llama.cpp.", False)
    gguf_type: str = option("--gguf-type", "Its numbers: f32, f16, bf16; auto keeps the network's.", "auto")
    tokenizer: Path | None = option(
        "--tokenizer", "For GGUF: the tokenizer, where it is not in the network's folder.", None, metavar="PATH"
    )
    no_tokenizer: bool = option("--no-tokenizer", "For GGUF: write no tokenizer.", False)


@dataclass(frozen=True, kw_only=True)
class BenchRequest:
    """What `shoal bench` takes."""

    folder: Path = _FOLDER()
    batch_size: int = _BATCH_SIZE()
    channels_last: bool = _CHANNELS_LAST()
    seconds: float = option("--seconds", "Timed seconds per network and batch.", 3.0, min=0.1)
    isolate: bool = option("--isolate", "Meanwhile bind this process to the least busy cores (Linux).", False)
    device: str = _DEVICE()


@dataclass(frozen=True, kw_only=True)
class EvalRequest:
    """What `shoal eval` takes."""

    folder: Path = _FOLDER()
    tasks: str = option("--tasks", "Tasks that lm-eval knows, as hellaswag,arc_easy.", metavar="NAMES")
    limit: int | None = option("--limit", "At most this many samples of each task.", None, min=1)
    shots: int | None = option("--shots", "Examples in front of each sample; by default as the task says.", None, min=0)
    include_path: Path | None = option(
        "--include-path", "A folder with tasks of your own (YAML of lm-eval).", None, metavar="DIR"
    )
    tokenizer: Path | None = option(
        "--tokenizer", "The tokenizer, where it is not in the network's folder.", None, metavar="PATH"
    )
    batch_size: int = option("--batch-size", "Samples at once.", 8, min=1)
    seed: int = option("--seed", "Decides the examples in front of a sample.", 0, min=0, max=2**32 - 1)
    device: str = _DEVICE()
    command: str = command_line()


@dataclass(frozen=True, kw_only=True)
class DistillRequest:
    """What `shoal distill` takes."""

    student: str = argument("STUDENT", "The network that learns, as MODEL.")
    data: str = argument("DATA", _DATA_HELP)
    teacher: str = option("--teacher", "The network it learns from.", metavar="MODEL")
    budget: str = option("--budget", "How long: a time, or a number of steps.", "5m", metavar="10m|2000")
    lora: int = _LORA()
    checkpointing: bool = _CHECKPOINTING()
    unlabelled: str | None = _UNLABELLED()
    rate: float | None = option("--lr", "The highest learning rate; found by a short test by default.", None)
    features: float | None = option(
        "--features",
        "Weight of the features' error; 0: outputs alone. Default: 64 with SGD, 4 with AdamW.",
        None,
        min=0,
    )
    labels: float = option("--labels", "Weight of the labels; 0 needs none.", 0.0, min=0)
    output: list[str] | None = _OUTPUT()
    task: str | None = _TASK()
    accumulate: int = _ACCUMULATE()
    shard: bool = option(
        "--shard", "With torchrun: divide the weights of student and teacher over the processes (FSDP2).", False
    )
    cache_teacher: int = _CACHE_TEACHER()
    track: str | None = _TRACK()
    bf16: bool = _BF16()
    weights: Path | None = _WEIGHTS()
    teacher_weights: Path | None = option("--teacher-weights", "A state dict for the teacher.", None, metavar="FILE")
    data_options: DataOptions = nested(DataOptions)
    channels_last: bool = _TRAIN_CHANNELS_LAST()
    out: Path | None = _OUT()
    device: str = _DEVICE()
    dry_run: bool = _DRY_RUN()
    command: str = command_line()


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """What `shoal train` takes; None leaves it to the recipe."""

    model: str | None = argument("MODEL", _MODEL_HELP, None)
    data: str | None = argument("DATA", _DATA_HELP, None)
    epsilon: str | None = option(
        "--epsilon",
        "Branches whose output stays below it add nothing; 0 trains the plain network; auto holds it for --lose.",
        None,
        metavar="E|auto",
    )
    lose: float | None = option(
        "--lose", "The share of blocks to lose, instead of --epsilon; auto has 0.3.", None, metavar="SHARE"
    )
    teacher: str | None = option(
        "--teacher",
        "MODEL is trained already: it learns from this network while it loses blocks.",
        None,
        metavar="MODEL",
    )
    teacher_weights: Path | None = option("--teacher-weights", "A state dict for the teacher.", None, metavar="FILE")
    recipe: str | None = option("--recipe", "digits, cifar10, cifar100, svhn, imagenet; that of DATA by default.", None)
    epochs: int | None = option("--epochs", "Instead of the recipe's.", None, min=1)
    rate: float | None = option("--lr", "The first learning rate.", None)
    decay: float | None = option("--decay", "The weight decay.", None)
    side: bool = option("--side/--no-side", "Side supervision in the middle.", True)
    freeze_after: int | None = option(
        "--freeze-after", "Epochs a gate stays closed before its block is removed.", None, min=1
    )
    faithful: bool = option(
        "--faithful", "As in the paper: blocks are removed only when their weights have died.", False
    )
    hold: int = option("--hold", "Epochs with open gates first.", 0, min=0)
    rise: int = option("--rise", "Epochs in which epsilon then rises.", 0, min=0)
    track: str | None = _TRACK()
    bf16: bool = _BF16()
    channels_last: bool = _TRAIN_CHANNELS_LAST()
    compile: bool = option("--compile", "Use torch.compile.", False)
    checkpoint_every: int = option("--checkpoint-every", "Epochs between checkpoints.", 1, min=1)
    compare: bool = option(
        "--compare", "Also train the plain network, and one with a far too large epsilon, to compare with.", False
    )
    also_epsilon: str | None = option(
        "--also-epsilon", "Other values of epsilon to compare this run with.", None, metavar="A,B"
    )
    weights: Path | None = _WEIGHTS()
    data_options: DataOptions = nested(DataOptions, omit=("batch_size", "tokenizer", "sequence_length"))
    out: Path | None = _OUT()
    device: str = _DEVICE()
    batch_size: int | None = option("--batch-size", "Instead of the recipe's.", None, min=2)
    dry_run: bool = _DRY_RUN()
    command: str = command_line()


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """What `shoal report` takes."""

    folders: list[Path] = argument("OUT", "Output folders of `shoal compress`.")
    out: Path = option("--out", "The page to write.", Path("runs.html"), metavar="FILE")


@dataclass(frozen=True, kw_only=True)
class PushRequest:
    """What `shoal push` takes."""

    folder: Path = _FOLDER()
    repo: str = argument("REPO", "OWNER/NAME on the hub; made if there is none.")
    form: str | None = option(
        "--form",
        "hf: for from_pretrained; nemotron-nas; shoal: for shoal.load. hf where the folder has it.",
        None,
        metavar="hf|nemotron-nas|shoal",
        values=("hf", "nemotron-nas", "shoal"),
    )
    private: bool = option("--private/--public", "A new repository is private unless you say otherwise.", True)
    dry_run: bool = _DRY_RUN()


@dataclass(frozen=True, kw_only=True)
class DoctorRequest:
    """What `shoal doctor` takes: nothing of its own."""


@dataclass(frozen=True, kw_only=True)
class ListRequest:
    """What `shoal list` takes."""

    what: str = argument(
        "WHAT",
        "models, data, replacements, metrics or scores.",
        values=("models", "data", "replacements", "metrics", "scores"),
    )
    pattern: str | None = argument(
        "PATTERN", "Only what matches: resnet, 'vit_*'. With models also the names of torchvision and timm.", None
    )
