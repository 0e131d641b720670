#!/usr/bin/env python3
"""What a trained model is like, measured on the INT8 weights that ship, beside an older model. No PyTorch needed.

    python training/evaluate.py MODEL --baseline OLD --data DATA --out training/results/evaluation.json

MODEL and OLD are anything that `elmoe run` takes, with the same tokenizer. Measured: held-out loss by source; how
evenly experts are used; locality of routing inside a text and across texts; answers to the questions of questions.py.
"""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from elmoe import Engine, EngineOptions, Generation, Mode, Speculation
from elmoe.engine.elasticity import ELASTICITY_SEQUENCE, Teacher
from elmoe.errors import ElmoeError
from questions import QUESTIONS
from token_files import held_out_documents, held_out_rows, mean_by_share

HERE = Path(__file__).parent
T = 512
"""Tokens of a held-out row, as the starting model was evaluated."""
WINDOW = 32
POOLS = (0.25, 0.375, 0.5, 0.75)


def nats(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Cross entropy of every row: logits [T, V], targets [T] -> [T]."""
    wide = logits.astype(np.float64)
    top = wide.max(-1, keepdims=True)
    logs = np.log(np.exp(wide - top).sum(-1)) + top[:, 0]
    return logs - wide[np.arange(len(targets)), targets]


class HeldOut:
    """Losses and routing of one model over the held-out text of every source."""

    def __init__(self, engine: Engine, data: Path, sources: list[str], rows: int) -> None:
        self.losses: dict[str, float] = {}
        """Of stretches of the files."""
        self.documents: dict[str, float] = {}
        """Of documents, each read alone."""
        self.experts: dict[str, np.ndarray] = {}
        """Source -> [rows, T, L, A]."""
        for source in sources:
            read = [self._read(engine, row) for row in held_out_rows(data, source, T, rows)]
            if read:
                self.losses[source] = float(np.mean(np.concatenate([losses for losses, _ in read])))
                self.experts[source] = np.stack([experts for _, experts in read])
            alone = [self._read(engine, text)[0] for text in held_out_documents(data, source, T, rows * T)]
            self.documents[source] = float(np.mean(np.concatenate(alone)))
            print(f"{source}: {self.losses.get(source, 0):.4f} {self.documents[source]:.4f}", flush=True)

    @staticmethod
    def _read(engine: Engine, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Nats of tokens[1:], and the experts of tokens[:-1], [T, L, A]."""
        teacher = Teacher(engine.backend, tokens[:-1].tolist())
        engine.backend.release(ELASTICITY_SEQUENCE)
        return nats(teacher.logits, tokens[1:]), teacher.experts

    def rows(self) -> Iterator[np.ndarray]:
        """Every row's experts, [T, L, A]."""
        for stacked in self.experts.values():
            yield from stacked


def imbalance(held_out: HeldOut, shares: dict[str, float], experts: int) -> list[float]:
    """Most over mean use of an expert in every layer, sources weighted by share."""
    use = 0.0
    for source, chosen in held_out.experts.items():
        counts = np.stack([np.bincount(layer.ravel(), minlength=experts) for layer in np.moveaxis(chosen, 2, 0)])
        use = use + shares[source] * counts / counts.sum(1, keepdims=True)
    return [round(float(layer.max() / layer.mean()), 2) for layer in use]


def locality(held_out: HeldOut, experts: int, seed: int = 0) -> dict[str, Any]:
    """How much the experts of neighbouring tokens have in common, averaged over layers."""
    rows = list(held_out.rows())
    rng = np.random.default_rng(seed)
    active = rows[0].shape[-1]

    def distinct(window: np.ndarray) -> float:  # [WINDOW, L, A]
        return float(np.mean([len(np.unique(window[:, layer])) for layer in range(window.shape[1])]))

    inside = [distinct(row[at : at + WINDOW]) for row in rows for at in range(WINDOW, T - WINDOW, 4 * WINDOW)]
    across = []
    for _ in range(len(inside)):
        picked = rng.integers(len(rows), size=WINDOW)
        across.append(distinct(np.stack([rows[row][rng.integers(T)] for row in picked])))
    return {
        "window_tokens": WINDOW,
        "distinct_experts_inside_a_text": round(float(np.mean(inside)), 2),
        "distinct_experts_across_texts": round(float(np.mean(across)), 2),
        "distinct_experts_if_uniform": round(experts * (1 - (1 - active / experts) ** WINDOW), 2),
        "share_of_choices_in_hot_pool": {
            str(fraction): round(hot_share(rows, round(fraction * experts), experts), 3) for fraction in POOLS
        },
    }


def hot_share(rows: list[np.ndarray], slots: int, experts: int) -> float:
    """Share of choices inside the `slots` experts that the last WINDOW tokens of the same text used most."""
    inside = total = 0
    for row in rows:
        for layer in np.moveaxis(row, 1, 0):  # [T, A]
            one_hot = np.zeros((T, experts))
            np.put_along_axis(one_hot, layer.astype(np.int64), 1.0, axis=1)
            sums = np.concatenate([np.zeros((1, experts)), one_hot.cumsum(0)])
            counts = sums[WINDOW:T] - sums[: T - WINDOW] - np.arange(experts) * 1e-6  # ties: the lower expert
            pool = np.zeros((T - WINDOW, experts), bool)
            np.put_along_axis(pool, np.argsort(-counts, axis=1)[:, :slots], True, axis=1)
            inside += int(np.take_along_axis(pool, layer[WINDOW:].astype(np.int64), axis=1).sum())
            total += layer[WINDOW:].size
    return inside / total


def answers(engine: Engine) -> list[dict[str, Any]]:
    """Greedy answers to all questions."""
    engine.speculation = Speculation(mode=Mode.AR)
    prompts = [[{"role": "user", "content": question.text}] for question in QUESTIONS]
    outputs = engine.generate(prompts, Generation(max_tokens=160))
    return [
        {
            "kind": question.kind,
            "question": question.text,
            "answer": output.text,
            "right": question.is_answered_by(output.text) if question.expect else None,
        }
        for question, output in zip(QUESTIONS, outputs, strict=True)
    ]


def score(answered: list[dict[str, Any]]) -> dict[str, str]:
    """Right answers by kind, of the kinds that can be checked."""
    kinds: dict[str, list[bool]] = {}
    for entry in answered:
        if entry["right"] is not None:
            kinds.setdefault(entry["kind"], []).append(entry["right"])
    return {kind: f"{sum(right)} of {len(right)}" for kind, right in kinds.items()}


def evaluate(model: str, data: Path, shares: dict[str, float], rows: int) -> dict[str, Any]:
    """Everything about one model."""
    engine = Engine.open(model, EngineOptions(max_batch=16))
    held_out = HeldOut(engine, data, list(shares), rows)
    experts = engine.backend.shape.experts
    asked = answers(engine)
    return {
        "held_out": mean_by_share(held_out.losses, shares),
        "held_out_documents": mean_by_share(held_out.documents, shares),
        "imbalance": imbalance(held_out, shares, experts),
        "locality": locality(held_out, experts),
        "score": score(asked),
        "answers": asked,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--baseline", required=True, help="the older model")
    parser.add_argument("--data", type=Path, required=True, help="folder with the NAME.val.bin files of prepare.py")
    parser.add_argument("--rows", type=int, default=24, help="most held-out rows of a source")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    shares = tomllib.loads((HERE / "mixture.toml").read_text())["held_out"]
    document = {
        "rows_per_source": options.rows,
        "tokens_per_row": T,
        "model": evaluate(options.model, options.data, shares, options.rows),
        "baseline": evaluate(options.baseline, options.data, shares, options.rows),
    }
    for measure in ("held_out", "held_out_documents"):
        before, after = (document[key][measure]["mixture"] for key in ("baseline", "model"))
        document[f"{measure}_change"] = round(after / before - 1, 4)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    temporary = options.out.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(options.out)
    print(json.dumps({key: document[key]["score"] for key in ("model", "baseline")}), document["held_out_change"])


if __name__ == "__main__":
    try:
        main()
    except ElmoeError as error:
        raise SystemExit(str(error)) from None
