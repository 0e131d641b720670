"""Measures what docs/numerics.md states: agreement with transformers, errors of INT8. Not a test.

cd tests && PYTHONPATH=../bench python -m verify.figures              # bench/results/numerics.json
cd tests && PYTHONPATH=../bench python -m verify.figures --markdown   # the tables of docs/numerics.md
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from backend.family_models import FAMILY_MODELS, make_family_model
from elmoe.backend.decoded import Activations
from elmoe.backend.reference import ReferenceBackend
from elmoe.checkpoint.convert import convert
from elmoe.checkpoint.folder import Checkpoint
from elmoe.checkpoint.resolve import resolve
from elmoe.checkpoint.text import Tokenizer
from harness import RESULTS, ROOT, markdown_table, provenance, replace_block, write_result
from verify import dequantised, injected_noise, int8_bound, prompts
from verify.forward import forward_batch, forward_tree
from verify.variants import PARENTS, VARIANTS

REPETITIONS = 16


def agreement() -> list[dict[str, Any]]:
    """Largest difference from transformers, by model."""
    from verify import hf_models

    found = []
    for number, (name, changes) in enumerate(VARIANTS.items()):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            hf_models.save_random_model(folder / "source", number, **changes)
            convert(folder / "source", folder / "model.elmoe")
            checkpoint = Checkpoint.open(folder / "model.elmoe")
            weights = dequantised.from_source(folder / "source")
            text = np.random.default_rng(number).integers(0, checkpoint.shape.vocab, 70).tolist()
            found.append({"model": name} | _agreement(checkpoint, weights, [text]))
    checkpoint = Checkpoint.open(resolve("tiny"))
    texts = prompts.of_tiny(Tokenizer.open(checkpoint.path))
    found.append({"model": "`tiny`"} | _agreement(checkpoint, dequantised.from_checkpoint(checkpoint), texts))
    return found


def _agreement(checkpoint: Checkpoint, weights: dequantised.Tensors, texts: list[list[int]]) -> dict[str, float]:
    from verify import hf_models

    theirs, ours = hf_models.load(checkpoint.config, weights), ReferenceBackend(checkpoint, Activations.FP32)
    expected = np.concatenate([hf_models.sequence_logits(theirs, text) for text in texts])
    tokens = np.random.default_rng(3).integers(0, checkpoint.shape.vocab, len(PARENTS)).tolist()
    tree = forward_tree(ours, texts[0], tokens, PARENTS).logits
    return {
        "rows": len(expected),
        "logit_std": float(expected.std()),
        "batch": float(np.abs(forward_batch(ours, texts).logits - expected).max()),
        "tree": float(np.abs(tree - hf_models.tree_logits(theirs, texts[0], tokens, PARENTS)).max()),
    }


def int8_by_family() -> list[dict[str, Any]]:
    """INT8 against FP32 and against random rounding, for a small random model of each family."""
    found = []
    for name, config in FAMILY_MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = make_family_model(Path(folder), config)
            rng = np.random.default_rng(0)
            texts = [rng.integers(0, checkpoint.shape.vocab, length).tolist() for length in (60, 40, 20)]
            use = int8_bound.measure(checkpoint, texts)
            study = injected_noise.study(checkpoint, texts, REPETITIONS)
            low, high = injected_noise.band([each.typical for each in study.signs])
            found.append(
                {
                    "model": name,
                    "outputs": use.outputs,
                    "violations": use.violations,
                    "largest_of_bound": use.largest,
                    "typical": study.int8.typical,
                    "band": [low, high],
                }
            )
    return found


def measure() -> dict[str, Any]:
    """All figures."""
    checkpoint = Checkpoint.open(resolve("tiny"))
    texts = prompts.of_tiny(Tokenizer.open(checkpoint.path))
    use = int8_bound.measure(checkpoint, texts)
    return {
        "agreement": agreement(),
        "layer_bound": asdict(use) | {"rms": use.rms},
        "noise": asdict(injected_noise.study(checkpoint, texts, REPETITIONS)),
        "families": int8_by_family(),
    }


def agreement_table(document: dict[str, Any]) -> str:
    """Largest |difference| of a logit."""
    rows: list[list[object]] = [
        [each["model"], each["rows"], f"{each['logit_std']:.2f}", f"{each['batch']:.1e}", f"{each['tree']:.1e}"]
        for each in document["agreement"]
    ]
    return markdown_table(["model", "rows", "std of logits", "largest difference", "in a tree"], rows)


def family_table(document: dict[str, Any]) -> str:
    """INT8 of each family beside its band."""
    rows: list[list[object]] = [
        [
            each["model"],
            f"{each['outputs']:,}",
            each["violations"],
            f"{each['largest_of_bound']:.2f}",
            f"{each['typical']:.4f}",
            f"{each['band'][0]:.4f} to {each['band'][1]:.4f}",
        ]
        for each in document["families"]
    ]
    columns = ["family", "outputs of layers", "above the bound", "largest of it", "INT8, typical", "stated bound"]
    return markdown_table(columns, rows)


def int8_table(document: dict[str, Any]) -> str:
    """INT8 beside random errors."""
    use, noise = document["layer_bound"], document["noise"]
    text = (
        f"Single layers: {use['outputs']:,} outputs of all linear layers of `tiny`, {use['violations']} above the "
        f"bound; error / bound is {use['rms']:.3f} (RMS) and {use['largest']:.2f} at most.\n\n"
        f"Logits of `tiny`: {noise['rows']} rows, {noise['decisions']} routing decisions, "
        f"{len(noise['uniform'])} draws of each kind of random error, mean (smallest to largest).\n\n"
    )
    columns = ["errors", "typical difference", "largest", "rows routed otherwise", "decisions", "best token changed"]
    fields = ("typical", "largest", "flipped_rows", "flipped_decisions", "argmax_changed")
    rows: list[list[object]] = [["INT8 (measured)", *(_figure(noise["int8"][field]) for field in fields)]]
    for kind, title in (("signs", "random signs"), ("uniform", "uniform ±s/2")):
        columns_of = [[each[field] for each in noise[kind]] for field in fields]
        rows.append([title, *(f"{_figure(np.mean(v))} ({_figure(min(v))} to {_figure(max(v))})" for v in columns_of)])
    return text + markdown_table(columns, rows)


def _figure(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 and value else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="only rewrite the tables of docs/numerics.md")
    if parser.parse_args().markdown:
        document = json.loads((RESULTS / "numerics.json").read_text())
        replace_block(ROOT / "docs" / "numerics.md", "agreement", agreement_table(document))
        replace_block(ROOT / "docs" / "numerics.md", "int8", int8_table(document))
        replace_block(ROOT / "docs" / "numerics.md", "int8-families", family_table(document))
        return
    settings = {"model": "tiny", "repetitions": REPETITIONS}
    write_result("numerics", provenance(settings) | measure())


if __name__ == "__main__":
    main()
