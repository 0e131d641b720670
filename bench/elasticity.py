"""Agreement of drafts with the embedded model, over bits, pools and treatments.

    python bench/elasticity.py --prompts DIR_OR_FILE [--limit 40] [--markdown] [--model OLD.elmoe --name elasticity_old]

Writes bench/results/NAME.json; with --markdown also the tables and the plot of docs/elasticity.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from elmoe import Engine, EngineOptions, Generation, Mode, Speculation
from elmoe.cli.prompts import read_jsonl
from elmoe.engine.elasticity import POOL_FRACTIONS, full_grid, measure
from harness import RESULTS, ROOT, markdown_table, provenance, replace_block, write_result

TREATMENTS = ("augment", "dedicated", "round", "truncate")


def mixed_prompts(source: Path, limit: int) -> list[str]:
    """The first prompts of every file, evenly."""
    files = sorted(source.glob("*.jsonl")) if source.is_dir() else [source]
    texts = [read_jsonl(file) for file in files]
    return [text for row in zip(*(t[: -(-limit // len(files))] for t in texts), strict=False) for text in row][:limit]


def run(model: str, prompts: Path, limit: int, max_tokens: int) -> dict[str, Any]:
    """Teacher-forced agreement over the model's own greedy answers."""
    engine = Engine.open(model, EngineOptions(backend="reference", speculation=Speculation(mode=Mode.AR)))
    asked = [[{"role": "user", "content": text}] for text in mixed_prompts(prompts, limit)]
    asked = [prompt for prompt in asked if len(engine.encode(prompt)) < 512]
    outputs = engine.generate(asked, Generation(max_tokens=max_tokens))
    encoded = [engine.encode(prompt) for prompt in asked]
    sequences = [(ids + output.token_ids, len(ids)) for ids, output in zip(encoded, outputs, strict=True)]
    grid = measure(engine.backend, sequences, full_grid(), lambda done, total: print(f"{done}/{total}", flush=True))
    rows = [
        {
            "bits": cell.setting.bits,
            "pool_fraction": cell.setting.pool_fraction,
            "treatment": cell.setting.treatment.value,
            "pool": cell.setting.pool.value,
            "agreement": round(cell.agreement, 4),
            "overlap": round(cell.overlap, 4),
            "positions": cell.positions,
        }
        for cell in grid
    ]
    name = Path(model).stem
    settings = {"model": name, "prompts": len(sequences), "max_tokens": max_tokens, "workloads": prompts.name}
    return provenance(settings) | {"grid": rows}


def find(document: dict[str, Any], **fields: Any) -> str:
    """The agreement and overlap of one cell."""
    cell = next(row for row in document["grid"] if all(row[name] == value for name, value in fields.items()))
    return f"{cell['agreement']:.3f} / {cell['overlap']:.3f}"


def tables(document: dict[str, Any]) -> str:
    """Markdown of the two tables."""
    fractions = list(POOL_FRACTIONS)
    hot = [
        [label, *(find(document, bits=bits, treatment="augment", pool="hot", pool_fraction=f) for f in fractions)]
        for bits, label in ((8, "8 bits (expert axis alone)"), *((b, f"{b} bits, augmented") for b in range(7, 1, -1)))
    ]
    cold = [
        [
            f"{bits} bits, random pool",
            "",
            *(find(document, bits=bits, treatment="augment", pool="random", pool_fraction=f) for f in fractions[1:]),
        ]
        for bits in (8, 4)
    ]
    by_treatment = [
        [f"{bits} bits", *(find(document, bits=bits, treatment=t, pool="hot", pool_fraction=1.0) for t in TREATMENTS)]
        for bits in range(7, 1, -1)
    ]
    positions = document["grid"][0]["positions"]
    return "\n\n".join(
        [
            f"Model `{document['settings']['model']}`, {document['settings']['prompts']} prompts, "
            f"{positions} positions, commit `{document['commit']}`. Cells: agreement / overlap.",
            markdown_table(["draft \\ share of experts in the pool", *(f"{f:.1%}" for f in fractions)], hot + cold),
            markdown_table(["all experts, by treatment", *TREATMENTS], by_treatment),
        ]
    )


def plot(document: dict[str, Any], path: Path) -> None:
    """Agreement against bits and against the pool."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "elmoe"  # same numbers, same file
    import matplotlib.pyplot as plt

    def series(**fields: Any) -> list[float]:
        rows = [row for row in document["grid"] if all(row[name] == value for name, value in fields.items())]
        return [row["agreement"] for row in rows]

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True, sharey=True)
    for treatment in TREATMENTS:
        wide = [series(bits=b, treatment=treatment, pool="hot", pool_fraction=1.0)[0] for b in range(2, 8)]
        left.plot(range(2, 8), wide, marker="o", label=treatment)
    left.set(xlabel="draft bits", ylabel="agreement with the target", title="bit axis (all experts)", ylim=(0, 1.02))
    left.legend()
    for bits, pool, style in (
        (8, "hot", "-"),
        (4, "hot", "-"),
        (3, "hot", "-"),
        (8, "random", "--"),
        (4, "random", "--"),
    ):
        shares = [f for f in POOL_FRACTIONS if pool == "hot" or f < 1]
        label = f"{bits} bits, {pool} pool"
        right.plot(shares, series(bits=bits, treatment="augment", pool=pool), style, marker="o", label=label)
    right.set(xlabel="share of experts in the pool", title="expert axis (augmented slices)")
    right.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=40)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--name", default="elasticity", help="of the result file")
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    document = run(arguments.model, arguments.prompts, arguments.limit, arguments.max_tokens)
    print(write_result(arguments.name, document).relative_to(RESULTS.parents[1]))
    print(tables(document))
    if arguments.markdown:
        plot(document, ROOT / "docs" / "img" / "elasticity.svg")
        replace_block(ROOT / "docs" / "elasticity.md", "elasticity", tables(document))


if __name__ == "__main__":
    main()
