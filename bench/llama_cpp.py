"""elmoe against llama.cpp on the same Q8_0 weights: `elmoe bench` on the random 1.13 B model, kept for the docs.

    python bench/llama_cpp.py MODEL.elmoe --peer-python PYTHON_WITH_LLAMA_CPP [--rounds 7]
    python bench/llama_cpp.py --markdown

MODEL.elmoe: `python bench/random_checkpoint.py FOLDER`, then `elmoe convert FOLDER -o MODEL.elmoe`. Arms are
interleaved, medians over rounds, a bandwidth probe in every round. Writes bench/results/llama_cpp.json; --markdown
rewrites the tables of README.md and docs/cpu.md from it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from harness import RESULTS, ROOT, markdown_table, provenance, replace_block, write_result

NAME = "llama_cpp"


def table(document: dict[str, Any]) -> str:
    """Markdown: one line per batch, prefill last."""
    by = {(row["arm"], row["batch"]): row for row in document["rows"]}
    batches = sorted({batch for _, batch in by})
    lines: list[list[object]] = []
    for batch in batches:
        ours, peer = by["ar", batch], by["llama.cpp", batch]
        lines.append(
            [
                f"decode, batch {batch}",
                f"{peer['decode_tok_s']:.0f}",
                f"{ours['decode_tok_s']:.0f}",
                f"{ours['ratio_to_peer']:.2f}",
                f"{ours['fraction_of_bandwidth']:.0%}",
                f"{median(ours['read_gb_per_s_by_round']):.0f}",
            ]
        )
    ours, peer = by["ar", batches[0]], by["llama.cpp", batches[0]]
    speeds = (peer["prefill_tok_s"], ours["prefill_tok_s"])
    lines.append(["prefill, 128 tokens", *(f"{speed:.0f}" for speed in speeds), f"{speeds[1] / speeds[0]:.2f}", "", ""])
    columns = ["tokens/s", "llama.cpp", "elmoe", "ratio", "of read bandwidth", "probe GB/s"]
    return markdown_table(columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="an .elmoe folder")
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--markdown", action="store_true", help="only rewrite the tables")
    arguments = parser.parse_args()
    if arguments.markdown:
        text = table(json.loads((RESULTS / f"{NAME}.json").read_text()))
        replace_block(ROOT / "docs" / "cpu.md", "peer", text)
        replace_block(ROOT / "README.md", "peer", text)
        return
    if arguments.model is None:
        parser.error("MODEL is needed")
    command = [sys.executable, "-c", "from elmoe.cli.main import main; main()", "bench", arguments.model]
    command += ["--against", "llama.cpp", "--peer-python", arguments.peer_python, "--json"]
    command += ["--rounds", str(arguments.rounds), "--steps", str(arguments.steps)]
    found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    found["model"] = Path(found["model"]).name  # no path of this machine
    write_result(NAME, provenance({"rounds": arguments.rounds, "steps": arguments.steps}) | found)
    print(table(found))


if __name__ == "__main__":
    main()
