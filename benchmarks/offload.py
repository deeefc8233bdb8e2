"""A network three times larger than the memory it may use: scanned, scored and fitted from the disk, block by block.

    python benchmarks/offload.py [--weights 1500] [--share 3] [--tokens 8x64] [--work FOLDER] [--out NAME.json]

A GPT-2 with random weights is written as sharded safetensors, a block at a time. A process then takes a limit of a
third of that on top of what Python and the libraries take (RLIMIT_DATA: the system refuses more), and in it

- as a control, all weights are read at once: the system has to refuse that;
- accelerate dispatches the network, the blocks to the disk;
- `removal_sweep` finds what every block is worth, `block_scores` the scores without gradients;
- `fit_all` fits linear stand-ins for spans of two blocks;
- one block is taken out and two are replaced by a stand-in, and the network that is left answers.

The peak of each step is that of the memory that is no file (RssAnon) above the start of the process.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from shoal.batches import Batch, call
from shoal.blocks import analyze
from shoal.measure import machine
from shoal.plan import Remove, Replace
from shoal.preserve import evaluating
from shoal.replace import ReplacementSpec, build_segments, find_spans, fit_all
from shoal.scanning import removal_sweep
from shoal.scanning.scores.collect import block_scores
from shoal.surgery import remove_blocks_
from shoal.surgery.replace import replace_spans_

_MEGA = 2**20
_WIDTH, _HEADS, _VOCABULARY, _POSITIONS = 1024, 16, 512, 128
_INDEX = "model.safetensors.index.json"


def main() -> None:
    """Write the network, then work on it in a process with a limit."""
    args = _arguments()
    folder = Path(tempfile.mkdtemp(dir=args.work))
    try:
        context = multiprocessing.get_context("spawn")
        size = _written(folder, args.weights * _MEGA)
        limit = size // args.share
        found = context.Manager().dict()
        # What is freed goes back to the system at once, so that a peak is that of what is held.
        os.environ["MALLOC_MMAP_THRESHOLD_"] = str(_MEGA)
        for do, given in ((_control, (folder, limit, found)), (_work, (folder, limit, args.tokens, found))):
            process = context.Process(target=do, args=given)
            process.start()
            process.join()
            if process.exitcode != 0:
                raise SystemExit(f"the process with the limit ended with {process.exitcode}; it had {dict(found)}")
        document = {"machine": machine("cpu").model_dump(), "weights_mb": size / _MEGA, **found}
        print(json.dumps({key: one for key, one in document.items() if key != "machine"}, indent=1))
        if args.out:
            args.out.write_text(json.dumps(document, indent=1) + "\n")
    finally:
        shutil.rmtree(folder)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=1500, help="MiB of weights, about")
    parser.add_argument("--share", type=int, default=3, help="how many times larger than the limit they are")
    parser.add_argument("--tokens", default="8x64", help="sequences and their length in a mini-batch; there are two")
    parser.add_argument("--work", type=Path, help="a folder on a disk with twice the weights free")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def _config(layers: int) -> GPT2Config:
    return GPT2Config(
        vocab_size=_VOCABULARY,
        n_embd=_WIDTH,
        n_head=_HEADS,
        n_layer=layers,
        n_positions=_POSITIONS,
        bos_token_id=0,
        eos_token_id=0,
    )


def _empty(layers: int) -> GPT2LMHeadModel:
    with init_empty_weights():
        model = GPT2LMHeadModel(_config(layers))
    model.tie_weights()
    return model.eval()


def _written(folder: Path, size: int) -> int:
    """Write random weights, a shard for each block, never more than one in memory; returns their bytes."""
    generator = torch.Generator().manual_seed(0)
    layers = max(6, size // (4 * 12 * _WIDTH**2))
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in _empty(layers).state_dict().items():
        if name == "lm_head.weight":  # tied to the embedding
            continue
        block = name.split(".")[2] if ".h." in name else "rest"
        shards.setdefault(block, {})[name] = tensor
    places, total = {}, 0
    for number, (_, tensors) in enumerate(shards.items()):
        file = f"model-{number:05d}.safetensors"
        made = {name: _random(name, tensor, layers, generator) for name, tensor in tensors.items()}
        save_file(made, str(folder / file), metadata={"format": "pt"})
        places |= dict.fromkeys(made, file)
        total += sum(one.numel() * 4 for one in made.values())
    (folder / _INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}))
    (folder / "layers.txt").write_text(str(layers))
    return total


def _random(name: str, like: torch.Tensor, layers: int, generator: torch.Generator) -> torch.Tensor:
    if ".ln_" in name:
        return torch.ones(like.shape) if name.endswith("weight") else torch.zeros(like.shape)
    if name.endswith("bias"):
        return torch.zeros(like.shape)
    scale = 0.02 / (2 * layers) ** 0.5 if "c_proj" in name else 0.02
    return scale * torch.randn(like.shape, generator=generator)


def _work(folder: Path, limit: int, tokens: str, found: Any) -> None:
    start = _limited(limit)
    found["limit_mb"] = limit / _MEGA
    samples, length = map(int, tokens.split("x"))
    given = [
        Batch(kwargs={"input_ids": torch.randint(_VOCABULARY, (samples, length), generator=_seed(number))})
        for number in range(2)
    ]

    def step(name: str, do: Callable[[], Any]) -> Any:
        with _peak() as peak:
            began = time.perf_counter()
            result = do()
            seconds = time.perf_counter() - began
        found[name] = {"peak_mb": round((peak[0] - start) / _MEGA, 1), "seconds": round(seconds, 1)}
        print(name, found[name], flush=True)
        return result

    model = step("dispatch", lambda: _dispatched(folder))
    found["blocks"] = model.config.n_layer
    anatomy = step("trace", lambda: analyze(model, given[0].take(2)))
    paths = [block.path for block in anatomy.chain.removable]
    worths = step("scan", lambda: removal_sweep(anatomy, given[:1], paths))
    found["damages"] = {one.path: one.damage for one in worths}
    step("scores", lambda: block_scores(anatomy, given[:1]))
    spans = [one for one in find_spans(anatomy, build_segments(anatomy), 2) if one.stop - one.start == 2]
    wanted = [
        ReplacementSpec(spans[0], "linear"),
        ReplacementSpec(spans[len(spans) // 2], "linear"),
        ReplacementSpec(spans[-1], "scale"),
    ]
    fitted = step("fit", lambda: fit_all(anatomy, given, wanted))
    found["r2_held_out"] = {f"{one.kind} {one.span.name}": one.r2_held_out for one in fitted}

    def cut() -> None:
        one = fitted[0]
        replace_spans_(
            anatomy, [Replace(paths=list(one.span.paths), stand_in=one.stand_in)], {one.span.paths[0]: one.module}
        )
        with evaluating(remove_blocks_(anatomy, [Remove(path=paths[-1])])):
            call(anatomy.model, given[0])

    step("cut", cut)
    peaks = [one["peak_mb"] for one in found.values() if isinstance(one, dict) and "peak_mb" in one]
    found["largest_peak_mb"] = max(peaks)


def _warm_up() -> None:
    """What a library takes at its first use is no part of the network."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_head=2, n_layer=2, n_positions=8)).eval()
    batch = Batch(kwargs={"input_ids": torch.zeros(4, 4, dtype=torch.long)})
    anatomy = analyze(model, batch)
    removal_sweep(anatomy, [batch], anatomy.chain.paths[:1])
    fit_all(anatomy, [batch, batch], [ReplacementSpec(find_spans(anatomy, build_segments(anatomy), 1)[0], "linear")])


def _limited(limit: int) -> int:
    """Take so many bytes more as the limit; returns what was resident before."""
    torch.set_num_threads(1)
    _warm_up()
    data = _status("VmData")
    resource.setrlimit(resource.RLIMIT_DATA, (data + limit, data + limit))
    return _status("RssAnon")


def _control(folder: Path, limit: int, found: Any) -> None:
    """Read all weights at once, and note how that ended."""
    _limited(limit)
    try:
        held = [
            {name: tensor.clone() for name, tensor in load_file(str(file)).items()}
            for file in sorted(folder.glob("*.safetensors"))
        ]
    except (MemoryError, RuntimeError, OSError) as error:
        found["all_at_once"] = f"refused: {type(error).__name__}"
        return
    raise SystemExit(f"the limit does not hold: {len(held)} shards were read")


def _dispatched(folder: Path) -> GPT2LMHeadModel:
    layers = int((folder / "layers.txt").read_text())
    model = _empty(layers)
    places: dict[str, Any] = {"transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.drop": "cpu"}
    places |= {f"transformer.h.{number}": "disk" for number in range(layers)}
    places |= {"transformer.ln_f": "cpu", "lm_head": "cpu"}
    return load_checkpoint_and_dispatch(model, folder / _INDEX, device_map=places, offload_folder=folder / "offloaded")


def _seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def _status(key: str) -> int:
    """A line of the process' own status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


@contextmanager
def _peak() -> Iterator[list[int]]:
    """The largest RssAnon while the context lasts, looked at a hundred times a second."""
    seen, done = [_status("RssAnon")], threading.Event()

    def look() -> None:
        while not done.wait(0.01):
            seen[0] = max(seen[0], _status("RssAnon"))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main()
