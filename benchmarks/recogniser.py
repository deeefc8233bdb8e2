"""Whisper base with fewer units in its encoder: chosen by what the decoder makes of it, refitted, recovered.

    REAL_MODELS=FOLDER python benchmarks/recogniser.py --work WORK --out benchmarks/results/recogniser-whisper.json

Speech without transcripts: windows of up to 28 seconds (`real/speech.py:windows`), with what the original itself hears.
The units that go are those of the least damage, which is the divergence of the decoder's words, not the error of the
encoder's states. What is left of the encoder is refitted in closed form to the original's states, and then the whole
network learns from the original for --steps windows. The rival is removal by block influence, as many layers as it
takes to be as fast. Each step is kept in --work, so that an interrupted run goes on. Word error rates are by a few
lines that share nothing with Shoal, on recorded utterances and on sentences spoken by a machine.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

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

_JUDGED = (0, 1, 5, 8)  # windows that damage is measured on
_FITTED = range(6, 18)  # that maps are fitted on
_FIRST = 9  # of those that are learnt from
_PREFIX = "model."


def main() -> None:
    """Do the steps that are missing, write the document."""
    args = arguments()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    run = Run(args)
    ways: dict[str, Callable[[], nn.Module]] = {
        "original": lambda: run.original,
        "removed": lambda: run.cut(run.units()),
        "removed + refitted": run.refitted,
        "removed + refitted + recovered": run.recovered,
        "layers removed by block influence": lambda: run.cut(run.influence()),
    }
    document: dict[str, Any] = {"units": run.units(), "machine": machine("cpu").model_dump(mode="json"), "ways": {}}
    document |= {"windows": args.windows, "steps": args.steps}
    for name in args.ways.split(",") if args.ways else ways:
        print(name, flush=True)
        document["ways"][name] = run.figures(name, ways[name]())
        print({key: value for key, value in document["ways"][name].items() if key != "heard"}, flush=True)
    names = ("damages", "influence", "refit-seconds", "recovery-seconds", "recovery-record")
    document |= {
        name: json.loads(place.read_text()) for name in names if (place := args.work / f"{name}.json").exists()
    }
    args.out.write_text(json.dumps(document, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3, help="units of the encoder that go")
    parser.add_argument("--windows", type=int, default=76, help="windows of speech, in all")
    parser.add_argument("--steps", type=int, default=100, help="windows that the network learns from")
    parser.add_argument("--ways", help="only these, with commas")
    parser.add_argument("--unheard", default="", help="ways whose words are not asked for, with commas")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


class Run:
    """The network, the speech, and what is kept of each step."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.work = args, args.work
        self.original = speech.base()
        self.rows = self._rows()
        self.judged = [self.rows[index] for index in _JUDGED]
        request = OutputRequest(task="seq2seq")
        choice = request.choose(self.original, self.judged[0])
        self.reading: Reading = request.read(choice, self.original, self.judged[:1])

    def _rows(self) -> list[Batch]:
        """Windows, and the tokens that the original hears in them."""
        heard: list[list[int]] = self.kept("heard", list)
        rows = []
        for index, sound in enumerate(speech.windows()[: self.args.windows]):
            features = speech.features(sound)
            if index == len(heard):
                heard.append(speech.tokens(self.original, features))
                self.keep("heard", heard)
            tokens = torch.tensor([heard[index][:-1]])
            rows.append(Batch(kwargs={"input_features": features[None], "decoder_input_ids": tokens}))
        return rows

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        """What an earlier run kept, or what is made now and kept."""
        place = self.work / f"{name}.json"
        if not place.exists():
            self.keep(name, make())
        return json.loads(place.read_text())

    def keep(self, name: str, value: Any) -> None:
        """Keep a value."""
        (self.work / f"{name}.json").write_text(json.dumps(value))

    def units(self) -> list[str]:
        """The units of the encoder whose removal does the least damage to what the decoder says."""

        def sweep() -> dict[str, float]:
            graph = analyze(self.original, self.judged[0])
            layers = [block for block in graph.chain.removable if block.path.startswith("model.encoder.")]
            names = [f"{block.path}#{unit}" for block in layers for unit in range(len(block.units))]
            worths = removal_sweep(graph, self.judged, names, damage=OutputDamage(self.reading))
            return {worth.path: worth.damage for worth in worths}

        damages = self.kept("damages", sweep)
        return sorted(sorted(damages, key=damages.__getitem__)[: self.args.count])

    def influence(self) -> list[str]:
        """The fewest layers of the encoder, in the order of block influence (arXiv:2403.03853), that are as fast."""

        def choose() -> list[str]:
            graph = analyze(self.original, self.judged[0])
            scores = block_scores(graph, self.judged)
            layers = [block.path for block in graph.chain.removable if block.path.startswith("model.encoder.")]
            order = sorted(layers, key=lambda path: scores[path]["block_influence"])
            fast = self.share(self.cut(self.units()))[0]
            return next(
                order[:count] for count in range(1, len(order)) if self.share(self.cut(order[:count]))[0] <= 1.02 * fast
            )

        return self.kept("influence", choose)

    def cut(self, names: list[str]) -> nn.Module:
        """The network without them."""
        return remove_blocks(self.original, self.judged[0], names).eval()

    def encoder_cut(self) -> tuple[nn.Module, list[str]]:
        """The encoder alone without the units, and their names in it."""
        names = [name.removeprefix(_PREFIX) for name in self.units()]
        first = Batch(args=(self.rows[0].kwargs["input_features"],))
        return remove_blocks(speech.Encoder(self.original).eval(), first, names).eval(), names

    def refitted(self) -> nn.Module:
        """The encoder's last maps fitted to the original's states, in closed form; the decoder as it was."""
        place, (encoder, names) = self.work / "refitted.safetensors", self.encoder_cut()
        if place.exists():
            load_model(encoder, place)
        else:
            started = time.process_time()
            features = [self.rows[index].kwargs["input_features"] for index in _FITTED]
            fit = [Batch(args=(torch.cat(pair),)) for pair in zip(features[::2], features[1::2], strict=True)]
            graph = analyze(speech.Encoder(self.original).eval(), fit[0].take(1))
            refit_(graph, encoder, [], fit, removed=names, config=RefitConfig(memory=4e9))
            save_model(encoder, place)
            self.keep("refit-seconds", time.process_time() - started)
        network: Any = copied(self.original)
        network.model.encoder = encoder.encoder
        return network

    def recovered(self) -> nn.Module:
        """The whole network after it learned from the original, by its own words and states, without transcripts."""
        place, network = self.work / "recovered.safetensors", self.refitted()
        if not place.exists():
            started = time.process_time()
            order = torch.randperm(len(self.rows) - _FIRST, generator=torch.Generator().manual_seed(0)).tolist()
            result = shoal.distill(
                network,
                self.original,
                DistillData([self.rows[_FIRST + index] for index in order], reading=self.reading),
                validation=self.judged,
                budget=self.args.steps,
                config=shoal.DistillConfig(rate=8e-5, warm_up=0.1, precision="bf16", looks=4, blends=0.0),
                folder=self.work / "recovery",
            )
            save_model(result.model, place)
            self.keep("recovery-seconds", time.process_time() - started)
            self.keep("recovery-record", result.recovery.model_dump(mode="json"))
        load_model(network, place)
        return network.eval()

    def share(self, network: Any) -> list[float]:
        """The latency of the encoder as a share of the original's."""
        encoders = {name: speech.Encoder(each).eval() for name, each in (("original", self.original), ("cut", network))}
        batch = Batch(args=(self.rows[0].kwargs["input_features"],))
        ratio = latency_ratios(encoders, batch, reference="original", max_seconds=60.0)["cut"]
        return [ratio.ratio, ratio.low, ratio.high]

    def figures(self, name: str, network: nn.Module) -> dict[str, Any]:
        """Latency, divergence and word error rates of a network, with paired intervals."""
        key = name.replace(" ", "-")
        heard: dict[str, list[str]] = self.kept(f"words-{key}", dict)
        figures: dict[str, Any] = {"heard": heard}
        if network is not self.original:
            figures["share"] = self.kept(f"share-{key}", lambda: self.share(network))
            figures["divergence"] = self.kept(f"divergence-{key}", lambda: self.divergence(network))
        if name in self.args.unheard.split(","):
            return figures
        for part, pairs in (("utterances", speech.utterances()), ("sentences", speech.synthetic())):
            texts = heard.setdefault(part, [])
            for features, _ in pairs[len(texts) :]:
                texts += speech.transcripts(network, [features])
                self.keep(f"words-{key}", heard)
            before = self.kept("words-original", dict).get(part, texts)
            figures[part] = compared([words for _, words in pairs], before, texts)
        figures["both"] = compared(
            [words for _, words in [*speech.utterances(), *speech.synthetic()]],
            [text for part in ("utterances", "sentences") for text in self.kept("words-original", dict)[part]],
            [text for part in ("utterances", "sentences") for text in heard[part]],
        )
        return figures

    @torch.inference_mode()
    def divergence(self, network: nn.Module) -> float:
        """KL of the next token, in nats, on the windows that units were chosen on."""
        values: list[Tensor] = []
        for batch in self.judged:
            before, after = (each(**batch.kwargs).logits.log_softmax(-1) for each in (self.original, network))
            values.append((before.exp() * (before - after)).sum(-1).mean())
        return float(torch.stack(values).mean())


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
