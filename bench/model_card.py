"""Puts what was measured of the embedded model into its card: training log, evaluation, elasticity, samples.

    python bench/model_card.py

Reads training/results (train.py's log, evaluate.py's figures) and bench/results (elasticity of both models); writes the
tables of MODEL_CARD.md and docs/img/training.svg. The table of acceptance rates comes from bench/acceptance.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from acceptance import CARD
from harness import RESULTS, ROOT, markdown_table, replace_block

TRAINING = ROOT / "training" / "results"
SAMPLED_KINDS = ("arithmetic", "facts", "code", "small talk", "writing")
FRACTIONS = (1.0, 0.75, 0.5, 0.375, 0.25)
TREATMENTS = ("augment", "dedicated", "round", "truncate")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def held_out(document: dict[str, Any]) -> str:
    """Loss by source, both ways of reading, before and after."""

    def cells(source: str) -> list[object]:
        found: list[object] = []
        for measure in ("held_out", "held_out_documents"):
            pair = [document[key][measure].get(source) for key in ("baseline", "model")]
            found += [f"{v:.3f}" if v is not None else "" for v in pair]
            found.append(f"{pair[1] / pair[0] - 1:+.1%}" if None not in pair else "")
        return found

    sources = list(document["model"]["held_out_documents"])
    columns = ["source", "stretches, before", "now", "", "documents alone, before", "now", ""]
    return markdown_table(columns, [[source, *cells(source)] for source in sources])


def routing(document: dict[str, Any]) -> str:
    """Load balance and locality, before and after."""
    rows: list[list[object]] = []
    pair = [document[key] for key in ("baseline", "model")]
    most = [", ".join(f"{value:.2f}" for value in entry["imbalance"]) for entry in pair]
    rows.append(["most over mean use of an expert, by layer", *most])
    place = [entry["locality"] for entry in pair]
    window = place[0]["window_tokens"]
    for label, name in (
        (f"distinct experts of {window} neighbouring tokens", "distinct_experts_inside_a_text"),
        (f"distinct experts of {window} tokens of different texts", "distinct_experts_across_texts"),
        ("the same if routing were uniform", "distinct_experts_if_uniform"),
    ):
        rows.append([label, *(entry[name] for entry in place)])
    for fraction in place[0]["share_of_choices_in_hot_pool"]:
        label = f"choices inside the {float(fraction):.1%} of experts that were hottest in the last {window} tokens"
        rows.append([label, *(f"{entry['share_of_choices_in_hot_pool'][fraction]:.1%}" for entry in place)])
    return markdown_table(["", "before", "now"], rows)


def elasticity(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Agreement over bits and pools, and over treatments at 4 bits."""

    def cell(document: dict[str, Any], **fields: Any) -> str:
        row = next(row for row in document["grid"] if all(row[name] == value for name, value in fields.items()))
        return f"{row['agreement']:.3f}"

    rows: list[list[object]] = []
    for bits, pool in (
        (8, "hot"),
        (6, "hot"),
        (5, "hot"),
        (4, "hot"),
        (3, "hot"),
        (2, "hot"),
        (8, "random"),
        (4, "random"),
    ):
        for label, document in (("before", before), ("now", now)):
            cells = [
                ""
                if pool == "random" and f == 1
                else cell(document, bits=bits, treatment="augment", pool=pool, pool_fraction=f)
                for f in FRACTIONS
            ]
            rows.append([f"{bits} bits, {pool} pool, {label}", *cells])
    by_pool = markdown_table(["draft", *(f"{f:.1%} of the experts" for f in FRACTIONS)], rows)
    by_treatment = markdown_table(
        ["all experts", *TREATMENTS],
        [
            [
                f"{bits} bits, {label}",
                *(cell(d, bits=bits, treatment=t, pool="hot", pool_fraction=1.0) for t in TREATMENTS),
            ]
            for bits in (6, 5, 4, 3, 2)
            for label, d in (("before", before), ("now", now))
        ],
    )
    positions = [document["grid"][0]["positions"] for document in (before, now)]
    return f"{by_pool}\n\n{by_treatment}\n\n{positions[0]} positions before, {positions[1]} now."


def samples(document: dict[str, Any]) -> str:
    """Every question and its greedy answer, right or wrong."""
    lines = []
    marks = {True: "right", False: "**wrong**", None: ""}
    for kind in SAMPLED_KINDS:
        score = document["model"]["score"].get(kind)
        before = document["baseline"]["score"].get(kind)
        lines.append(f"**{kind.capitalize()}**" + (f": {score} right (before: {before})" if score else "") + "\n")
        rows: list[list[object]] = []
        for entry in document["model"]["answers"]:
            if entry["kind"] == kind:
                answer = entry["answer"].strip().replace("|", "\\|").replace("\n", "<br>").replace("    ", "&emsp;")
                shown = answer.replace("```python<br>", "").replace("```", "")
                rows.append([entry["question"].replace("|", "\\|"), shown, marks[entry["right"]]])
        lines.append(
            "\n".join(["| asked | answer | |", "|---|---|---|", *(f"| {q} | {a} | {m} |" for q, a, m in rows)]) + "\n"
        )
    return "\n".join(lines)


def plot(log: list[dict[str, Any]], path: Path) -> None:
    """Training loss, rate and balance over the tokens trained."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "elmoe"  # same numbers, same file
    import matplotlib.pyplot as plt

    lines = [line for line in log if "loss" in line]
    tokens = [line["tokens"] / 1e6 for line in lines]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), constrained_layout=True)
    left.plot(tokens, [line["loss"] for line in lines], linewidth=1)
    left.set(xlabel="million tokens", ylabel="training loss, nats per token", ylim=(1, 2), title="loss")
    rate = left.twinx()
    rate.plot(tokens, [line["factor"] for line in lines], color="gray", linestyle=":", linewidth=1)
    rate.set(ylabel="learning rate, share of the peak (dotted)", ylim=(0, 2))
    for layer in range(len(lines[0]["imbalance"])):
        right.plot(tokens, [line["imbalance"][layer] for line in lines], linewidth=0.8, label=f"layer {layer}")
    right.set(
        xlabel="million tokens",
        ylabel="most over mean tokens of an expert, one batch",
        ylim=(1, 2.5),
        title="load balance",
    )
    right.legend(ncols=2, fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    document = read(TRAINING / "evaluation.json")
    log = [json.loads(line) for line in (TRAINING / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    replace_block(CARD, "held-out", held_out(document))
    replace_block(CARD, "routing", routing(document))
    replace_block(
        CARD, "elasticity", elasticity(read(RESULTS / "elasticity_starting.json"), read(RESULTS / "elasticity.json"))
    )
    replace_block(CARD, "samples", samples(document))
    plot(log, ROOT / "docs" / "img" / "training.svg")


if __name__ == "__main__":
    main()
