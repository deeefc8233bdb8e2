"""Whisper base with a cheaper encoder: attentions that give way to linear maps, or go; refitted, recovered.

    REAL_MODELS=FOLDER python benchmarks/recogniser.py --work WORK --counts 1,2,3,4,5 --recovered 3 --out FILE.json

Speech without transcripts: windows of up to 28 seconds (`real/speech.py:windows`), with what the original itself hears.
The attentions are those of the least damage, each mapped by itself (with --change removed: the units, each removed by
itself); damage is the divergence of the decoder's words, not the error of the encoder's states. What is left of the
encoder is refitted in closed form to the original's states, and for --recovered the whole network learns from the
original for --recovery. The rival is removal by block influence, as many layers as it takes to be as fast, with the
same recovery. Each step is kept in --work, so that an interrupted run goes on. Word error rates are by a few lines that
share nothing with Shoal, on recorded utterances and on sentences spoken by a machine.

With --device all but latency is computed there. Latency is that of the CPU, one thread; without it there is no
rival, unless --layers says how many go.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
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
from shoal.blocks import BlockGraph, analyze
from shoal.files.writing import write_text
from shoal.measure import Reading, latency_ratios, machine
from shoal.plan import Replace
from shoal.preserve import copied
from shoal.recover import DistillData
from shoal.replace import (
    FittedReplacement,
    RefitConfig,
    build_segments,
    find_spans,
    fit_linear_attentions,
    linear_attention_specs,
    refit_,
)
from shoal.scanning import OutputDamage, removal_sweep
from shoal.scanning.scores.collect import block_scores
from shoal.surgery import remove_blocks
from shoal.surgery.replace import replace_spans_
from shoal.tasks import OutputRequest

sys.path.insert(0, str(Path(__file__).parent / "real"))
import speech

_CHOSEN_ON, _JUDGED_ON = 4, 24  # windows of each source that changes are chosen on; that recovery is judged on
_PREFIX, _ENCODER = "model.", "model.encoder."
_RECOVERED = " + recovered"


def main() -> None:
    """Do the steps that are missing; the document is written after each."""
    args = arguments()
    torch.set_num_threads(args.cores)
    args.work.mkdir(parents=True, exist_ok=True)
    run = Run(args)
    for count in args.counts:
        cut = Cut(run, count)
        for way, make in cut.ways().items():
            print(f"{time.perf_counter() - _STARTED:.0f} s: {count}, {way}", flush=True)
            figures = run.figures(cut.key_of(way), way.endswith(_RECOVERED), make())
            run.document["cuts"].append({"count": count, "way": way, **cut.described(way), **figures})
            print({key: value for key, value in run.document["cuts"][-1].items() if key != "heard"}, flush=True)
            write_text(args.out, json.dumps(run.document, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=numbers, default=[3], help="how many attentions or units, with commas")
    parser.add_argument("--change", choices=["mapped", "removed"], default="mapped", help="what becomes of them")
    parser.add_argument("--recovered", type=numbers, default=[], help="counts that are recovered as well")
    parser.add_argument("--layers", type=int, help="of the rival; by default as many as it takes to be as fast")
    parser.add_argument("--sentences", type=int, default=240, help="that a machine speaks, to learn from")
    parser.add_argument(
        "--rounds", type=int, default=1, help="how often each sound is used, at another speed each time"
    )
    parser.add_argument("--windows", type=int, help="to learn from, at most")
    parser.add_argument("--fit", type=int, default=12, help="windows that maps are fitted on")
    parser.add_argument(
        "--recorded", type=int, default=0, help="windows of other speakers, besides, to choose and fit on"
    )
    parser.add_argument("--recovery", default="100", help="how long the network learns: mini-batches, or a time")
    parser.add_argument("--batch-size", type=int, default=1, help="windows in a mini-batch")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="of learning")
    parser.add_argument("--rate", type=float, default=8e-5, help="of learning")
    parser.add_argument("--varied", action="store_true", help="each window through another microphone in each epoch")
    parser.add_argument("--cores", type=int, default=1, help="for all but latency, which is that of one")
    parser.add_argument("--device", default="cpu", help="where networks are cut, recovered and judged")
    parser.add_argument("--untimed", action="store_true", help="without latencies")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def numbers(text: str) -> list[int]:
    """Whole numbers with commas."""
    return [int(part) for part in text.split(",")]


class Run:
    """The network, the speech, and what is kept of each step."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work
        self.original = speech.base().to(args.device)
        judged, learnt = speech.windows(args.sentences, args.rounds)
        learnt = learnt[: args.windows]
        self.judged = self.batches("heard-judged", judged[:_JUDGED_ON])
        self.learnt = self.batches("heard", learnt)
        others = speech.recorded(args.recorded + 2 * _CHOSEN_ON) if args.recorded else []
        self.recorded = others[: args.recorded]
        lines = others[args.recorded + 1 :: 2]  # of actors: volunteers speak other languages
        self.chosen_on = self.judged[:_CHOSEN_ON] + self.batches("heard-lines", lines)
        request = OutputRequest(task="seq2seq")
        choice = request.choose(self.original, self.judged[0])
        self.reading: Reading = request.read(choice, self.original, self.judged[:1])
        words = [text for texts in self.expected.values() for text in texts]
        self.document: dict[str, Any] = {
            "command": _command(args),
            "machine": machine(args.device).model_dump(mode="json"),
            "windows": {"judged": len(self.judged), "learnt": len(self.learnt)},
            "hours": sum(map(len, learnt)) / 16000 / 3600,
            "damages": self.damages(),
            "original": {"both": compared(words, *[[*chain(*self.words.values())]] * 2), "heard": self.words},
            "cuts": [],
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
        write_text(self.work / f"{name}.json", json.dumps(value))

    @cached_property
    def fit(self) -> list[Batch]:
        """What maps of the encoder are fitted on, two windows together."""
        device = self.args.device
        features = [row.kwargs["input_features"] for row in self.learnt[: self.args.fit]]
        features += [speech.features(sound, device).to(device)[None] for sound in self.recorded]
        return [Batch(args=(torch.cat(pair),)) for pair in zip(features[::2], features[1::2], strict=False)]

    @cached_property
    def encoder(self) -> BlockGraph:
        """The encoder alone."""
        return analyze(speech.Encoder(self.original).eval(), self.fit[0].take(1))

    @cached_property
    def maps(self) -> dict[str, FittedReplacement]:
        """A linear map for each attention of the encoder, by the block that it stands in."""
        chain_of_segments = build_segments(self.encoder)
        specs = linear_attention_specs(self.encoder, chain_of_segments, find_spans(self.encoder, chain_of_segments, 1))
        return {fitted.span.end: fitted for fitted in fit_linear_attentions(self.encoder, self.fit, specs)}

    def mapped(self, blocks: Sequence[str]) -> nn.Module:
        """The encoder with those maps in these blocks."""
        fitted = [self.maps[block] for block in blocks]
        actions = [Replace(paths=list(each.span.paths), stand_in=each.stand_in) for each in fitted]
        modules = {each.span.end: copied(each.module) for each in fitted}
        student = analyze(copied(self.encoder.model), self.fit[0].take(1))
        return replace_spans_(student, actions, modules).eval()

    def with_encoder(self, encoder: nn.Module) -> nn.Module:
        """The whole network with another encoder."""
        network: Any = copied(self.original)
        network.model.encoder = encoder.encoder
        return network

    def damages(self) -> dict[str, float]:
        """What each change by itself does to what the decoder says."""
        return self.kept(
            f"damages-{self.args.change}", self.damages_mapped if _is_mapped(self) else self.damages_removed
        )

    def damages_mapped(self) -> dict[str, float]:
        """Of each attention that gives way to a map."""
        return {block: self.divergence(self.with_encoder(self.mapped([block])), self.chosen_on) for block in self.maps}

    def damages_removed(self) -> dict[str, float]:
        """Of each unit that goes."""
        graph = analyze(self.original, self.judged[0])
        layers = [block for block in graph.chain.removable if block.path.startswith(_ENCODER)]
        names = [f"{block.path}#{unit}" for block in layers for unit in range(len(block.units))]
        worths = removal_sweep(graph, self.chosen_on, names, damage=OutputDamage(self.reading))
        return {worth.path: worth.damage for worth in worths}

    def influence(self) -> list[str]:
        """The layers of the encoder in the order of block influence (arXiv:2403.03853)."""

        def order() -> list[str]:
            graph = analyze(self.original, self.judged[0])
            scores = block_scores(graph, self.chosen_on, reading=self.reading)
            layers = [block.path for block in graph.chain.removable if block.path.startswith(_ENCODER)]
            return sorted(layers, key=lambda path: scores[path]["block_influence"])

        return self.kept("influence", order)

    def without(self, names: Sequence[str]) -> nn.Module:
        """The network without these units or layers."""
        return remove_blocks(self.original, self.judged[0], names).eval()

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

    def figures(self, structure: str, is_recovered: bool, network: nn.Module) -> dict[str, Any]:
        """Latency, divergence and word error rates of a network, with paired intervals."""
        figures: dict[str, Any] = {}
        key = f"{structure}-recovered" if is_recovered else structure
        if not self.args.untimed:
            figures["share"] = self.kept(f"share-{structure}", lambda: share(self.original, network))
        figures["divergence"] = self.kept(f"divergence-{key}", lambda: self.divergence(network, self.judged))
        figures["heard"] = heard = self.kept(f"words-{key}", lambda: words_of(network))
        for part, expected in self.expected.items():
            figures[part] = compared(expected, self.words[part], heard[part])
        figures["both"] = compared(*([*chain(*texts.values())] for texts in (self.expected, self.words, heard)))
        return figures

    @cached_property
    def expected(self) -> dict[str, list[str]]:
        """The transcripts of what is tested on."""
        return {name: [words for _, words in pairs] for name, pairs in tested().items()}

    @cached_property
    def words(self) -> dict[str, list[str]]:
        """What the original hears in it."""
        return self.kept("words-original", lambda: words_of(self.original))

    @torch.inference_mode()
    def divergence(self, network: nn.Module, windows: Sequence[Batch]) -> float:
        """KL of the next token, in nats, the mean over windows."""
        values: list[Tensor] = []
        for batch in windows:
            before, after = (each(**batch.kwargs).logits.log_softmax(-1) for each in (self.original, network))
            values.append((before.exp() * (before - after)).sum(-1).mean())
        return float(torch.stack(values).mean())


@dataclass(frozen=True, eq=False)
class Cut:
    """A cheaper encoder with so many changes, and the rival that is as fast."""

    run: Run
    count: int

    @property
    def key(self) -> str:
        """In front of what is kept of it."""
        return f"{self.run.args.change}-{self.count}"

    def ways(self) -> dict[str, Callable[[], nn.Module]]:
        """What is measured, and how it is made."""
        args = self.run.args
        change = "linear maps" if args.change == "mapped" else "units removed"
        ways = {f"{change}, refitted": self.refitted}
        has_rival = bool(args.layers) or not args.untimed
        if has_rival:
            ways["layers removed by block influence"] = self.without_layers
        if self.count in args.recovered:
            ways[f"{change}, refitted{_RECOVERED}"] = partial(self.recovered, self.key, self.refitted)
            if has_rival:
                rival = "layers removed by block influence"
                ways[f"{rival}{_RECOVERED}"] = partial(self.recovered, self.key_of(rival), self.without_layers)
        return ways

    def key_of(self, way: str) -> str:
        """In front of what is kept of a structure; the rival's is the same for all counts that it is as fast as."""
        return f"without-{len(self.layers())}" if "influence" in way else self.key

    def described(self, way: str) -> dict[str, Any]:
        """What was changed, how long the refit took and how it learned."""
        of_rival, kept = "influence" in way, self.run.kept
        if of_rival:
            figures: dict[str, Any] = {"names": self.layers()}
        else:
            figures = {"names": self.names(), "seconds_refit": kept(f"seconds-{self.key}", float)}
        if way.endswith(_RECOVERED):
            figures["recovery"] = kept(f"recovery-{self.key_of(way)}", dict)
        return figures

    def names(self) -> list[str]:
        """The changes of the least damage."""
        damages = self.run.damages()
        return sorted(sorted(damages, key=damages.__getitem__)[: self.count])

    def changed(self) -> nn.Module:
        """The network with them, not refitted."""
        run = self.run
        return run.with_encoder(run.mapped(self.names())) if _is_mapped(run) else run.without(self.names())

    def layers(self) -> list[str]:
        """The fewest layers of the encoder, in the order of block influence, that are as fast."""
        run, order = self.run, self.run.influence()
        if run.args.layers:
            return order[: run.args.layers]

        def share_without(count: int) -> float:
            return run.kept(f"share-without-{count}", lambda: share(run.original, run.without(order[:count])))[0]

        fast = 1.02 * run.kept(f"share-{self.key}", lambda: share(run.original, self.changed()))[0]
        return next(order[:count] for count in range(1, len(order)) if share_without(count) <= fast)

    def without_layers(self) -> nn.Module:
        """The rival's network."""
        return self.run.without(self.layers())

    def refitted(self) -> nn.Module:
        """The encoder's last maps fitted to the original's states, in closed form; the decoder as it was."""
        run, place, names = self.run, self.run.work / f"refitted-{self.key}.safetensors", self.names()
        fitted, removed = list[FittedReplacement](), list[str]()
        if _is_mapped(run):
            fitted, encoder = [run.maps[block] for block in names], run.mapped(names)
        else:
            removed = [name.removeprefix(_PREFIX) for name in names]
            encoder = remove_blocks(run.encoder.model, run.fit[0].take(1), removed).eval()
        if place.exists():
            load_model(encoder, place)
        else:
            started = time.perf_counter()
            refit_(run.encoder, encoder, fitted, run.fit, removed=removed, config=RefitConfig(memory=4e9))
            run.keep(f"seconds-{self.key}", time.perf_counter() - started)
            save_model(encoder, str(place))
        return run.with_encoder(encoder)

    def recovered(self, key: str, make: Callable[[], nn.Module]) -> nn.Module:
        """The whole network after it learned from the original, by its own words and states, without transcripts."""
        run, args, network = self.run, self.run.args, make()
        place = run.work / f"recovered-{key}.safetensors"
        if not place.exists():
            result = shoal.distill(
                network,
                run.original,
                DistillData(run.mini_batches, reading=run.reading),
                validation=run.judged,
                budget=args.recovery,
                config=shoal.DistillConfig(rate=args.rate, warm_up=0.1, precision=args.precision, looks=8, blends=0.0),
                folder=run.work / f"recovery-{key}",
            )
            run.keep(f"recovery-{key}", result.recovery.model_dump(mode="json"))
            save_model(result.model, str(place))
        load_model(network, place)
        return network.eval()


def _is_mapped(run: Run) -> bool:
    return run.args.change == "mapped"


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


def _command(args: argparse.Namespace) -> str:
    """The command without the folders of this machine."""
    varied_windows = " --varied" if args.varied else ""
    windows = "" if args.windows is None else f" --windows {args.windows}"
    counts, recovered = (",".join(map(str, given)) for given in (args.counts, args.recovered))
    return (
        f"benchmarks/recogniser.py --counts {counts} --change {args.change}"
        f"{f' --recovered {recovered} --recovery {args.recovery}' if recovered else ''} "
        f"--sentences {args.sentences} --rounds {args.rounds}{windows} --fit {args.fit} --recorded {args.recorded} "
        f"--batch-size {args.batch_size} "
        f"--rate {args.rate:g} --precision {args.precision}{varied_windows} --device {args.device}"
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
