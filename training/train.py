#!/usr/bin/env python3
"""Train a Qwen3-MoE from scratch, on a CPU or one GPU, within a time budget.

    python training/train.py --data DATA --out RUN --minutes 9                     # one call
    python training/train.py --data DATA --out RUN --minutes 9 --total-minutes 27  # the first of three: call it again

The schedule is a function of the time trained over all calls: warm-up, constant rate, then linear decay to zero at
--total-minutes. RUN/checkpoint.pt holds everything a later call needs. Where it is missing and RUN/parts holds weights
in Hugging Face's format (they travel between machines in pieces), the run goes on from these with fresh optimiser state
and another warm-up. RUN/log.jsonl gets a line every few seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from data import Corpus, read_mixture
from export import read_weights, write_folder
from model import SIZES, Model, Routing
from optimizer import Optimizer
from token_files import held_out_rows, mean_by_share

HERE = Path(__file__).parent
BALANCE_WEIGHT = 0.01
"""Of every layer's load-balancing loss (Switch Transformer's alpha). It sees a whole batch, so that texts of one kind
may still prefer some experts."""
Z_WEIGHT = 1e-3
"""Of every layer's router z-loss (ST-MoE)."""


@dataclass
class Progress:
    """What has been trained so far, over all calls."""

    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class Schedule:
    """Learning rate over time: warm-up by steps, constant, linear decay to zero over the last part."""

    total_seconds: float
    warmup_steps: int
    decay_share: float

    def factor(self, seconds: float, steps_of_call: int) -> float:
        left = 1 - seconds / self.total_seconds
        return max(0.0, min(1.0, (steps_of_call + 1) / self.warmup_steps, left / self.decay_share))


class Log:
    """JSON lines, in a file and on standard output."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("a", encoding="utf-8")

    def __call__(self, **fields: Any) -> None:
        line = json.dumps(fields)
        print(line, flush=True)
        self.file.write(line + "\n")
        self.file.flush()


@torch.no_grad()
def held_out_loss(model: Model, folder: Path, mixture: dict[str, float], T: int, most: int) -> dict[str, float]:
    """Nats per token of every source that has held-out rows, and `mixture`: their mean by share."""
    losses = {}
    model.eval()
    for name in mixture:
        rows = torch.from_numpy(held_out_rows(folder, name, T, most)).to(model.embedding.device)
        if len(rows):
            nats = [model(part[:, :-1].contiguous(), part[:, 1:].contiguous())[0] for part in rows.split(32)]
            losses[name] = float(torch.cat(nats).mean())
    return mean_by_share(losses, mixture)


def imbalance(routing: list[Routing]) -> list[float]:
    """Most over mean tokens of an expert, per layer."""
    return [round(float(r.counts.max() / r.counts.float().mean()), 2) for r in routing]


class Run:
    """One call: its model, optimiser, data and files."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.out = options, Path(options.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.device = torch.device("cuda" if torch.cuda.is_available() and not options.cpu else "cpu")
        torch.manual_seed(options.seed)
        torch.set_float32_matmul_precision("high")
        dtype = getattr(torch, options.dtype)
        self.model = Model(SIZES[options.size], dtype, options.dropout).to(self.device)
        self.optimizer = Optimizer(self.model, options.muon_rate, options.adam_rate, options.decay)
        self.progress = Progress()
        self.log = Log(self.out / "log.jsonl")
        self.resume()
        self.mixture = read_mixture(Path(options.mixture))
        seed = options.seed + self.progress.steps  # a later call draws other rows
        data = Path(options.data)
        self.corpus = Corpus(data, self.mixture, options.tokens, self.device, seed, options.one_source)
        total, active = self.model.count_parameters()
        self.log(parameters=total, active=active, device=str(self.device), **vars(options))
        if self.device.type == "cuda" and not options.eager:
            self.model.compile_layers()

    def resume(self) -> None:
        checkpoint, parts = self.out / "checkpoint.pt", self.out / "parts"
        if checkpoint.exists():
            state = torch.load(checkpoint, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress = Progress(**state["progress"])
        elif parts.exists():
            read_weights(self.model, parts)
            self.progress = Progress(**json.loads((parts / "progress.json").read_text()))
        elif self.options.init:
            read_weights(self.model, Path(self.options.init))

    def save(self) -> None:
        """The checkpoint, then the weights as a Hugging Face folder in pieces that can travel."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": asdict(self.progress),
        }
        temporary = self.out / "checkpoint.tmp"
        torch.save(state, temporary)
        temporary.replace(self.out / "checkpoint.pt")
        write_folder(self.model, self.out / "parts")
        (self.out / "parts" / "progress.json").write_text(json.dumps(asdict(self.progress)))

    def step(self, factor: float) -> tuple[torch.Tensor, list[Routing]]:
        tokens, targets = self.corpus.batch(self.options.batch)
        nats, routing = self.model(tokens, targets)
        extra = sum(BALANCE_WEIGHT * r.balance_loss + Z_WEIGHT * r.z_loss for r in routing)
        loss = nats.mean()
        (loss + extra).backward()
        self.optimizer.step(factor)
        return loss.detach(), routing

    def train(self) -> None:
        """Until the call's time or the schedule's is over."""
        options, progress = self.options, self.progress
        schedule = Schedule(60 * (options.total_minutes or options.minutes), options.warmup, options.decay_share)
        before, steps_before, began = progress.seconds, progress.steps, time.monotonic()
        logged, saved, losses, tokens_logged = began, began, [], progress.tokens
        while True:
            now = time.monotonic()
            progress.seconds = before + now - began
            if now - began >= 60 * options.minutes or progress.seconds >= schedule.total_seconds:
                break
            factor = schedule.factor(progress.seconds, progress.steps - steps_before)
            loss, routing = self.step(factor)
            losses.append(loss)
            progress.steps += 1
            progress.tokens += options.batch * options.tokens
            if now - logged >= options.log_seconds:
                mean = round(float(torch.stack(losses).mean()), 4)  # waits for the device
                rate = round((progress.tokens - tokens_logged) / (time.monotonic() - logged))
                self.log(
                    **asdict(progress), loss=mean, factor=round(factor, 3), tok_s=rate, imbalance=imbalance(routing)
                )
                logged, losses, tokens_logged = time.monotonic(), [], progress.tokens
            if now - saved >= 60 * options.save_minutes:
                self.save()
                saved = time.monotonic()
        self.save()
        losses = held_out_loss(self.model, Path(options.data), self.mixture, options.tokens, options.held_out_rows)
        epochs = {name: round(rate * progress.tokens, 2) for name, rate in self.corpus.epochs_per_token.items()}
        self.log(**asdict(progress), held_out=losses, epochs=epochs, peak_gb=self.peak_gb())

    def peak_gb(self) -> float:
        return round(torch.cuda.max_memory_allocated() / 1e9, 1) if self.device.type == "cuda" else 0.0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", required=True, help="folder of NAME.train.bin and NAME.val.bin, from prepare.py")
    add("--out", required=True, help="folder of the run: checkpoint, log, weights")
    add("--init", help="folder of weights to start a new run from, instead of random ones")
    add("--minutes", type=float, required=True, help="length of this call")
    add("--total-minutes", type=float, help="length of the schedule over all calls (default: this call's)")
    add("--mixture", default=str(HERE / "mixture.toml"), help="shares of the sources")
    add("--size", choices=sorted(SIZES), default="tiny")
    add("--tokens", type=int, default=1024, help="tokens a row")
    add("--batch", type=int, default=128, help="rows a step")
    add("--one-source", type=float, default=0.0, help="share of the rows whose documents all come from one source")
    add("--dropout", type=float, default=0.0, help="of what every layer adds")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of products; parameters are FP32")
    add("--muon-rate", type=float, default=0.02)
    add("--adam-rate", type=float, default=3e-3)
    add("--decay", type=float, default=0.05, help="weight decay of matrices, times the rate")
    add("--warmup", type=int, default=100, help="steps")
    add("--decay-share", type=float, default=0.6, help="last part of the schedule, in which the rate falls to zero")
    add("--save-minutes", type=float, default=5)
    add("--log-seconds", type=float, default=5)
    add("--held-out-rows", type=int, default=32, help="most rows of a source in the final evaluation")
    add("--seed", type=int, default=1)
    add("--cpu", action="store_true", help="do not use the GPU")
    add("--eager", action="store_true", help="do not compile")
    return parser.parse_args()


if __name__ == "__main__":
    Run(parse()).train()
