"""Whisper base with fewer units in its encoder: chosen by what the decoder makes of it, refitted, recovered.

    REAL_MODELS=FOLDER python benchmarks/recogniser.py --work WORK --out benchmarks/results/recogniser-whisper.json

Speech without transcripts: windows of up to 28 seconds (`real/speech.py:windows`), with what the original itself hears.
The units that go are those of the least damage, which is the divergence of the decoder's words, not the error of the
encoder's states. What is left of the encoder is refitted in closed form to the original's states, and then the whole
network learns from the original for --recovery. The rival is removal by block influence, as many layers as it takes to
be as fast, with the same recovery. Each step is kept in --work, so that an interrupted run goes on. Word error rates
are by a few lines that share nothing with Shoal, on recorded utterances and on sentences spoken by a machine.

With --device all but latency is computed there. Latency is that of the CPU, one thread: with --untimed it is left out,
and --latency-only adds it to --out afterwards, on any machine, since it needs the names of the units alone.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.nn.functional import interpolate

import shoal
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.measure import Reading, latency_ratios, machine
from shoal.preserve import copied
from shoal.recover import DistillData
from shoal.replace import RefitConfig, refit_
from shoal.scanning import OutputDamage, removal_sweep
from shoal.scanning.scores.collect import block_scores
from shoal.surgery import remove_blocks
from shoal.tasks import OutputRequest

sys.path.insert(0, str(Path(__file__).parent / "real"))
import speech

_CHOSEN_ON, _JUDGED_ON = 4, 24  # windows that units are chosen on, and that recovery is judged on, at most
_PREFIX, _ENCODER = "model.", "model.encoder."
_RECOVERED = " + recovered"


def main() -> None:
    """Do the steps that are missing; the document is written after each."""
    args = arguments()
    torch.set_num_threads(args.cores)
    args.work.mkdir(parents=True, exist_ok=True)
    if args.latency_only:
        timed(args)
        return
    run = Run(args)
    ways: dict[str, Callable[[], nn.Module]] = {
        "original": lambda: run.original,
        f"removed + refitted{_RECOVERED}": lambda: run.recovered("units", run.refitted),
        f"layers removed by block influence{_RECOVERED}": lambda: run.recovered("influence", run.without_layers),
        "removed + refitted": run.refitted,
        "layers removed by block influence": run.without_layers,
        "removed": lambda: run.cut(run.units()),
    }
    for name in args.ways.split(",") if args.ways else ways:
        print(f"{time.perf_counter() - _STARTED:.0f} s: {name}", flush=True)
        run.document["ways"][name] = run.figures(name, ways[name]())
        print({key: value for key, value in run.document["ways"][name].items() if key != "heard"}, flush=True)
        run.write()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3, help="units of the encoder that go")
    parser.add_argument("--layers", type=int, help="of the rival; by default as many as it takes to be as fast")
    parser.add_argument("--sentences", type=int, default=240, help="that a machine speaks, to learn from")
    parser.add_argument(
        "--rounds", type=int, default=1, help="how often each sound is used, at another speed each time"
    )
    parser.add_argument("--windows", type=int, help="to learn from, at most")
    parser.add_argument("--fit", type=int, default=12, help="windows that maps are fitted on")
    parser.add_argument("--recovery", default="100", help="how long the network learns: mini-batches, or a time")
    parser.add_argument("--batch-size", type=int, default=1, help="windows in a mini-batch")
    parser.add_argument("--rate", type=float, default=8e-5, help="of learning")
    parser.add_argument("--varied", action="store_true", help="each window through another microphone in each epoch")
    parser.add_argument("--cores", type=int, default=1, help="for all but latency, which is that of one")
    parser.add_argument("--device", default="cpu", help="where networks are cut, recovered and judged")
    parser.add_argument("--untimed", action="store_true", help="without latencies")
    parser.add_argument("--latency-only", action="store_true", help="time the networks of --out")
    parser.add_argument("--ways", help="only these, with commas")
    parser.add_argument("--unheard", default="removed", help="ways whose words are not asked for, with commas")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


class Run:
    """The network, the speech, and what is kept of each step."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work
        self.original = speech.base().to(args.device)
        judged, learnt = speech.windows(args.sentences, args.rounds)
        learnt = learnt[: args.windows]
        self.judged = self.batches("heard-judged", judged[:_JUDGED_ON])
        self.learnt = self.batches("heard", learnt)
        self.chosen_on = self.judged[:_CHOSEN_ON]
        request = OutputRequest(task="seq2seq")
        choice = request.choose(self.original, self.judged[0])
        self.reading: Reading = request.read(choice, self.original, self.judged[:1])
        self.document: dict[str, Any] = {
            "command": _command(args),
            "machine": machine(args.device).model_dump(mode="json"),
            "windows": {"judged": len(self.judged), "learnt": len(self.learnt)},
            "hours": sum(map(len, learnt)) / 16000 / 3600,
            "ways": {},
        }
        print(f"{time.perf_counter() - _STARTED:.0f} s: {len(self.learnt)} windows", flush=True)

    def batches(self, name: str, sounds: list[np.ndarray]) -> list[Batch]:
        """Windows, each by itself, and the tokens that the original hears in it."""
        device = self.args.device
        features = [speech.features(sound, device).to(device) for sound in sounds]
        heard: list[list[int]] = self.kept(name, lambda: speech.tokens(self.original, features))
        return [
            Batch(
                kwargs={
                    "input_features": sound[None],
                    "decoder_input_ids": torch.tensor([text[:-1]], device=device),
                }
            )
            for sound, text in zip(features, heard, strict=True)
        ]

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What an earlier run kept, or what is made now and kept."""
        place = self.work / f"{name}.json"
        if not place.exists():
            self.keep(name, make())
        return json.loads(place.read_text())

    def keep(self, name: str, value: Any) -> None:
        """Keep a value."""
        (self.work / f"{name}.json").write_text(json.dumps(value))

    def write(self) -> None:
        """The document, with what is kept so far."""
        for name in ("damages", "units", "influence", *(f"{part}-{way}" for part in _PARTS for way in _LEARNERS)):
            if (place := self.work / f"{name}.json").exists():
                self.document[name] = json.loads(place.read_text())
        self.args.out.write_text(json.dumps(self.document, indent=1) + "\n")

    def units(self) -> list[str]:
        """The units of the encoder whose removal does the least damage to what the decoder says."""

        def sweep() -> dict[str, float]:
            graph = analyze(self.original, self.judged[0])
            layers = [block for block in graph.chain.removable if block.path.startswith(_ENCODER)]
            names = [f"{block.path}#{unit}" for block in layers for unit in range(len(block.units))]
            worths = removal_sweep(graph, self.chosen_on, names, damage=OutputDamage(self.reading))
            return {worth.path: worth.damage for worth in worths}

        damages = self.kept("damages", sweep)
        return self.kept("units", lambda: sorted(sorted(damages, key=damages.__getitem__)[: self.args.count]))

    def influence(self) -> list[str]:
        """The fewest layers of the encoder, in the order of block influence (arXiv:2403.03853), that are as fast."""

        def choose() -> list[str]:
            graph = analyze(self.original, self.judged[0])
            scores = block_scores(graph, self.chosen_on, reading=self.reading)
            layers = [block.path for block in graph.chain.removable if block.path.startswith(_ENCODER)]
            order = sorted(layers, key=lambda path: scores[path]["block_influence"])
            if self.args.layers:
                return order[: self.args.layers]
            fast = 1.02 * share(self.original, self.cut(self.units()))[0]
            counts = range(1, len(order))
            return next(order[:count] for count in counts if share(self.original, self.cut(order[:count]))[0] <= fast)

        return self.kept("influence", choose)

    def cut(self, names: list[str]) -> nn.Module:
        """The network without them."""
        return remove_blocks(self.original, self.judged[0], names).eval()

    def without_layers(self) -> nn.Module:
        """The rival's network."""
        return self.cut(self.influence())

    def encoder_cut(self) -> tuple[nn.Module, list[str]]:
        """The encoder alone without the units, and their names in it."""
        names = [name.removeprefix(_PREFIX) for name in self.units()]
        first = Batch(args=(self.judged[0].kwargs["input_features"],))
        return remove_blocks(speech.Encoder(self.original).eval(), first, names).eval(), names

    def refitted(self) -> nn.Module:
        """The encoder's last maps fitted to the original's states, in closed form; the decoder as it was."""
        place, (encoder, names) = self.work / "refitted.safetensors", self.encoder_cut()
        if place.exists():
            load_model(encoder, place)
        else:
            started = time.perf_counter()
            features = [row.kwargs["input_features"] for row in self.learnt[: self.args.fit]]
            fit = [Batch(args=(torch.cat(pair),)) for pair in zip(features[::2], features[1::2], strict=False)]
            graph = analyze(speech.Encoder(self.original).eval(), fit[0].take(1))
            refit_(graph, encoder, [], fit, removed=names, config=RefitConfig(memory=4e9))
            save_model(encoder, str(place))
            self.keep("seconds-refit", time.perf_counter() - started)
        network: Any = copied(self.original)
        network.model.encoder = encoder.encoder
        return network

    def recovered(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """The whole network after it learned from the original, by its own words and states, without transcripts."""
        place, network = self.work / f"recovered-{name}.safetensors", make()
        if not place.exists():
            started, args = time.perf_counter(), self.args
            result = shoal.distill(
                network,
                self.original,
                DistillData(self.mini_batches, reading=self.reading),
                validation=self.judged,
                budget=args.recovery,
                config=shoal.DistillConfig(rate=args.rate, warm_up=0.1, precision="bf16", looks=8, blends=0.0),
                folder=self.work / f"recovery-{name}",
            )
            save_model(result.model, str(place))
            self.keep(f"seconds-{name}", time.perf_counter() - started)
            self.keep(f"recovery-{name}", result.recovery.model_dump(mode="json"))
        load_model(network, place)
        return network.eval()

    def mini_batches(self, epoch: int) -> Iterator[Batch]:
        """Windows of about as many words, in another order in each epoch; words beyond the fewest are left out."""
        size = self.args.batch_size
        lengths = torch.tensor([row.kwargs["decoder_input_ids"].shape[1] for row in self.learnt])
        order = (lengths + 4 * torch.rand(len(lengths))).argsort() if size > 1 else torch.randperm(len(lengths))
        parts = list(order.split(size))
        for part in torch.randperm(len(parts)).tolist():
            rows = [self.learnt[index].kwargs for index in parts[part].tolist()]
            features = torch.cat([row["input_features"] for row in rows])
            shortest = min(row["decoder_input_ids"].shape[1] for row in rows)
            yield Batch(
                kwargs={
                    "input_features": varied(features) if self.args.varied else features,
                    "decoder_input_ids": torch.cat([row["decoder_input_ids"][:, :shortest] for row in rows]),
                }
            )

    def figures(self, name: str, network: nn.Module) -> dict[str, Any]:
        """Latency, divergence and word error rates of a network, with paired intervals."""
        key = name.replace(" ", "-")
        figures: dict[str, Any] = {}
        if network is not self.original:
            if not self.args.untimed:
                figures["share"] = self.kept(f"share-{key}", lambda: share(self.original, network))
            figures["divergence"] = self.kept(f"divergence-{key}", lambda: self.divergence(network))
        if name in self.args.unheard.split(","):
            return figures
        figures["heard"] = heard = self.kept(f"words-{key}", lambda: words_of(network))
        before = self.kept("words-original", lambda: words_of(self.original))
        for part, expected in self.expected.items():
            figures[part] = compared(expected, before[part], heard[part])
        figures["both"] = compared(*([*chain(*texts.values())] for texts in (self.expected, before, heard)))
        return figures

    @cached_property
    def expected(self) -> dict[str, list[str]]:
        """The transcripts of what is tested on."""
        return {name: [words for _, words in pairs] for name, pairs in tested().items()}

    @torch.inference_mode()
    def divergence(self, network: nn.Module) -> float:
        """KL of the next token, in nats, on the windows that recovery is judged on."""
        values: list[Tensor] = []
        for batch in self.judged:
            before, after = (each(**batch.kwargs).logits.log_softmax(-1) for each in (self.original, network))
            values.append((before.exp() * (before - after)).sum(-1).mean())
        return float(torch.stack(values).mean())


_LEARNERS, _PARTS = ("refit", "units", "influence"), ("seconds", "recovery")
_STARTED = time.perf_counter()


def tested() -> dict[str, list[tuple[Tensor, str]]]:
    """Features and transcripts."""
    return {"utterances": speech.utterances(), "sentences": speech.synthetic()}


def words_of(network: nn.Module) -> dict[str, list[str]]:
    """What a network hears in the test data."""
    return {name: speech.transcripts(network, [features for features, _ in pairs]) for name, pairs in tested().items()}


def varied(features: Tensor) -> Tensor:
    """Windows as through another microphone in a room that is less quiet: bands are louder, and none falls silent.

    A unit of log-mel features is 40 dB.
    """
    count, bands, _ = features.shape
    louder = interpolate(0.12 * torch.randn(count, 1, 6), size=bands, mode="linear", align_corners=True)
    floor = features.amin((1, 2), keepdim=True) + torch.rand(count, 1, 1).to(features) * 0.6
    noise = floor + 0.05 * torch.randn(features.shape, device=features.device)
    return torch.maximum(features + louder.transpose(1, 2).to(features), noise)


def share(original: nn.Module, network: nn.Module) -> list[float]:
    """The latency of the encoder as a share of the original's, on the CPU."""
    networks = {"original": original, "cut": network}
    encoders = {name: speech.Encoder(copied(each).cpu()).eval() for name, each in networks.items()}
    batch = Batch(args=(speech.utterances()[0][0][None],))
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    ratio = latency_ratios(encoders, batch, reference="original", max_seconds=60.0)["cut"]
    torch.set_num_threads(cores)
    return [ratio.ratio, ratio.low, ratio.high]


def timed(args: argparse.Namespace) -> None:
    """Time the structures of the document here, and add what comes out to all ways that have them."""
    document, original = json.loads(args.out.read_text()), speech.base()
    features, start = speech.utterances()[0][0][None], torch.tensor([[50258, 50259]])
    example = Batch(kwargs={"input_features": features, "decoder_input_ids": start})
    for names, ways in (("units", "removed"), ("influence", "layers")):
        measured = share(original, remove_blocks(original, example, document[names]).eval())
        for way in (way for way in document["ways"] if way.startswith(ways)):
            document["ways"][way]["share"] = measured
        print(ways, measured, flush=True)
    document["timed_on"] = machine("cpu").model_dump(mode="json")
    args.out.write_text(json.dumps(document, indent=1) + "\n")


def _command(args: argparse.Namespace) -> str:
    """The command without the folders of this machine."""
    varied_windows = " --varied" if args.varied else ""
    return (
        f"benchmarks/recogniser.py --count {args.count} --sentences {args.sentences} --rounds {args.rounds} "
        f"--fit {args.fit} --recovery {args.recovery} --batch-size {args.batch_size} --rate {args.rate:g}"
        f"{varied_windows} --device {args.device}"
    )


def compared(expected: list[str], before: list[str], after: list[str]) -> dict[str, Any]:
    """Word error rates of the original and of another network, and the difference with a paired 95 % interval."""
    first, second = speech.word_errors(expected, before), speech.word_errors(expected, after)
    picks = np.random.default_rng(0).integers(0, len(first), (2000, len(first)))
    lost = (second[picks, 0] - first[picks, 0]).sum(1) / first[picks, 1].sum(1)
    words = int(first[:, 1].sum())
    return {
        "n": len(first),
        "words": words,
        "wer_original": float(first[:, 0].sum() / words),
        "wer": float(second[:, 0].sum() / words),
        "lost": np.percentile(lost, [2.5, 97.5]).tolist(),
    }


if __name__ == "__main__":
    main()
