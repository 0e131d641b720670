"""How often do three sampling rules accept the same draft token? Shared Gumbel noise, rejection, independent draws.

While the engine samples with a draft of one token per step, the target's and the draft's distribution before that token
are kept. For each pair (p, q) the three acceptance probabilities are computed, not sampled:

* shared noise (what elmoe does): ``sum_i 1 / sum_j max(p_j / p_i, q_j / q_i)``;
* rejection (speculative sampling; one candidate cannot do better): ``sum_i min(p_i, q_i) = 1 - TV``;
* independent draws (sample both, keep what matches): ``sum_i p_i * q_i``.

    python bench/sampling_rule.py --prompts DIR
    python bench/sampling_rule.py --markdown
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from elmoe.backend.protocol import Bool, DraftQuality, ForwardResult, Rows
from elmoe.backend.reference import ReferenceBackend
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.resolve import resolve
from elmoe.checkpoint.text import Tokenizer
from elmoe.engine.controller import Mode, Speculation
from elmoe.engine.engine import Engine, EngineOptions
from elmoe.engine.request import Generation
from elmoe.engine.sampler import Float64, Sampling
from elmoe.quant.bitnested import Float32
from harness import RESULTS, ROOT, markdown_table, provenance, replace_block, write_result
from lossless import read_prompts

TEMPERATURES = (0.7, 1.0)
BITS = (3, 4, 6)
POOL_FRACTION = 0.5


class PairRecorder(ReferenceBackend):
    """Keeps the draft's and the target's logits after the root of every tree of depth 1."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.pairs: list[tuple[Float32, Float32]] = []
        self._drafted: Float32 | None = None

    def forward(self, rows: Rows, pool: Bool | None = None, draft: DraftQuality | None = None) -> ForwardResult:
        """As the reference backend."""
        result = super().forward(rows, pool, draft)
        if draft is not None:
            self._drafted = result.logits[0]
        elif self._drafted is not None:
            self.pairs.append((result.logits[0], self._drafted))
            self._drafted = None
        return result


def shared_noise(p: Float64, q: Float64) -> float:
    """Chance that ``argmax(log p + g)`` and ``argmax(log q + g)`` are the same token for one Gumbel noise g.

    The sum over j of ``max(p_j / p_i, q_j / q_i)`` takes p where ``p_j / q_j >= p_i / q_i``, else q; in the
    order of this ratio both parts are running sums.
    """
    both = (p > 0) & (q > 0)
    p, q = p[both], q[both]
    order = np.argsort(p / q)
    p, q = p[order], q[order]
    p_from_here, q_below = np.cumsum(p[::-1])[::-1], np.cumsum(q) - q
    return float((1 / (p_from_here / p + q_below / q)).sum())


def rules(p: Float64, q: Float64) -> dict[str, float]:
    """Acceptance probability by rule, and the guarantee of shared noise."""
    rejection = float(np.minimum(p, q).sum())
    return {
        "rejection": rejection,
        "shared_noise": shared_noise(p, q),
        "shared_noise_at_least": rejection / (2 - rejection),
        "independent": float(p @ q),
    }


def probabilities(logits: Float32, temperature: float) -> Float64:
    """Softmax in FP64."""
    scores = logits.astype(np.float64) / temperature
    e = np.exp(scores - scores.max())
    return e / e.sum()


def measure(model: str, folder: Path, count: int, tokens: int) -> list[dict[str, Any]]:
    """One entry per temperature and draft width."""
    entries = []
    checkpoint = Checkpoint.open(resolve(model))
    for temperature in TEMPERATURES:
        for bits in BITS:
            backend = PairRecorder(checkpoint)
            speculation = Speculation(Mode.SD, 1, 1, 1, DraftQuality(bits=bits))
            options = EngineOptions(max_batch=1, pool_fraction=POOL_FRACTION, speculation=speculation)
            engine = Engine(backend, Tokenizer.open(checkpoint.path), options=options)
            prompts = read_prompts(engine, folder, count, tokens)
            each = [
                Generation(tokens, Sampling(temperature, seed=i), ignore_eos=True) for i in range(len(prompts.tokens))
            ]
            engine.generate(prompts.tokens, each)
            found = [rules(probabilities(p, temperature), probabilities(q, temperature)) for p, q in backend.pairs]
            means = {name: float(np.mean([each[name] for each in found])) for name in found[0]}
            counted = engine.stats.acceptance
            entries.append(
                {"temperature": temperature, "bits": bits, "pairs": len(found), **means}
                | {"engine_tested": counted.tested, "engine_acceptance_rate": counted.acceptance_rate}
            )
            print(entries[-1], flush=True)
    return entries


def markdown(document: dict[str, Any]) -> str:
    """The table of docs/lossless.md."""
    columns = ["temperature", "draft bits", "pairs", "rejection (1 - TV)", "shared noise (elmoe)"]
    columns += ["its guarantee", "independent draws", "engine's acceptance_rate"]
    names = ("rejection", "shared_noise", "shared_noise_at_least", "independent", "engine_acceptance_rate")
    rows: list[list[object]] = [
        [entry["temperature"], entry["bits"], f"{entry['pairs']:,}", *(f"{entry[name]:.3f}" for name in names)]
        for entry in document["entries"]
    ]
    return f"Measured with elmoe {document['elmoe']} ({document['commit']}).\n\n" + markdown_table(columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, help="folder of .jsonl files with the field turns or prompt")
    parser.add_argument("--model", default="tiny", help="as in `elmoe run`")
    parser.add_argument("--count", type=int, default=20, help="prompts, evenly from all files")
    parser.add_argument("--tokens", type=int, default=40, help="tokens generated per prompt")
    parser.add_argument("--markdown", action="store_true", help="only rewrite the table of docs/lossless.md")
    arguments = parser.parse_args()
    if arguments.markdown:
        document = json.loads((RESULTS / "sampling_rule.json").read_text())
        replace_block(ROOT / "docs" / "lossless.md", "sampling_rule", markdown(document))
        return
    if arguments.prompts is None:
        parser.error("--prompts is needed")
    entries = measure(arguments.model, arguments.prompts, arguments.count, arguments.tokens)
    model = resolve(arguments.model).name.removesuffix(".elmoe")
    settings = {"model": model, "prompts": arguments.count, "tokens_per_prompt": arguments.tokens}
    settings |= {"pool_fraction": POOL_FRACTION, "width": 1, "depth": 1, "top_p": 1.0}
    write_result("sampling_rule", provenance(settings) | {"entries": entries})


if __name__ == "__main__":
    main()
