"""What caching and Elastic-SD should gain on this machine: predicted, for the locality of the paper's four models.

    python bench/tiers_gain.py CONFIG.json [--machine FILE.toml] [--shares 4,8] [--batches 1,4,16] [--depths 4,8]
        [--acceptance 0.9] [--reuse R] [--profiles qwen3-30b-a3b,...] [--name N]

CONFIG.json (or a folder that has one) is the model's shape. Its experts are drawn as a named profile says
(`sim/specs/profiles.toml`), mapped to it as `skewed_routing.py` does for the checkpoints that are measured: tokens
repeat their predecessor's experts as often as explains the profile's misses at batch 1, or by --reuse. The fast tier
has 1/SHARE of the model's bytes. Drafts are chains; a drafted token holds with the chance --acceptance given that all
before it held, or with the profile's own acceptance rate (that of a 4-bit copy). Arms: plain decoding that streams
everything, plain decoding with whole experts cached, and Elastic-SD at the best split between MSB and LSB records. No
engine runs. Writes bench/results/tiers_gain.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from elmoe.errors import ElmoeError
from elmoe.sim.host.cache import Budget
from elmoe.sim.host.gain import Shape, accepted_length, gain
from elmoe.sim.host.spec import load_host
from elmoe.sim.model import MODELS, SimModel, load_model
from elmoe.sim.profile import Profile, named_profile, scheme_specs
from elmoe.trace.replay import Policy
from harness import ROOT, markdown_table, provenance, write_result
from skewed_routing import target_of

CONTEXT = 64
WORKLOAD = "mt-bench"


def locality_of(profile: str, model: SimModel, reuse: float | None) -> Profile:
    """A named profile for the experts of another shape."""
    found = named_profile(replace(model, name=profile), WORKLOAD, scheme_specs())
    reuse = target_of(found, model.experts_per_tok).reuse if reuse is None else reuse
    return replace(found, inside_reuse=reuse)


def predictions(arguments: argparse.Namespace, model: SimModel) -> Iterator[dict[str, Any]]:
    """A row per profile, budget, batch and depth."""
    host = load_host(str(arguments.machine))
    for name in arguments.profiles.split(","):
        profile = locality_of(name, model, arguments.reuse)
        chance = profile.acceptance["quant"] if arguments.acceptance is None else arguments.acceptance
        for share, batch, depth in product(*(map(int, each.split(",")) for each in sizes(arguments))):
            budget = Budget(int(model.total_bytes / share), Policy.BENEFIT)
            accepted = accepted_length(chance, depth, depth)
            found = gain(host, model, profile, budget, Shape(batch, CONTEXT, 1, depth, depth, accepted))
            yield {
                "profile": name,
                "share": share,
                "fast_bytes": budget.fast_bytes,
                "batch": batch,
                "depth": depth,
                "acceptance": chance,
                "tokens_per_step": 1 + accepted,
                "stream_tok_s": found.streaming.tokens_per_s,
                "ar_tok_s": found.cached.tokens_per_s,
                "sd_tok_s": found.elastic.tokens_per_s,
                "cache_gain": found.cache_gain,
                "elastic_gain": found.elastic_gain,
                "lsb_share": found.lsb_share,
            }


def sizes(arguments: argparse.Namespace) -> tuple[str, str, str]:
    """What is multiplied."""
    return arguments.shares, arguments.batches, arguments.depths


def table(rows: list[dict[str, Any]]) -> str:
    """A line per row."""
    columns = ["profile, budget, batch", "depth", "tokens/step", "stream tok/s", "ar tok/s", "sd tok/s"]
    lines: list[list[object]] = [
        [
            f"{row['profile']}, 1/{row['share']}, batch {row['batch']}",
            row["depth"],
            f"{row['tokens_per_step']:.2f}",
            *(f"{row[name]:.1f}" for name in ("stream_tok_s", "ar_tok_s", "sd_tok_s")),
            f"{row['cache_gain']:.2f}",
            f"{row['elastic_gain']:.2f}",
            f"{row['lsb_share']:g}",
        ]
        for row in rows
    ]
    return markdown_table([*columns, "cache gain", "Elastic-SD gain", "LSB / MSB kept"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument(
        "--machine", type=Path, default=ROOT / "src" / "elmoe" / "sim" / "specs" / "measured" / "this-machine.toml"
    )
    parser.add_argument("--profiles", default=",".join(MODELS))
    parser.add_argument("--shares", default="4,8")
    parser.add_argument("--batches", default="1,4,16")
    parser.add_argument("--depths", default="4,8")
    parser.add_argument("--acceptance", type=float)
    parser.add_argument("--reuse", type=float, help="chance that a token repeats an expert of the one before")
    parser.add_argument("--name", default="tiers_gain", help="of the file in bench/results")
    arguments = parser.parse_args()
    try:
        rows = list(predictions(arguments, load_model(arguments.config)))
    except ElmoeError as error:
        raise SystemExit(f"error: {error}") from None
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
    write_result(arguments.name, provenance(settings) | {"rows": rows})
    print(table(rows))


if __name__ == "__main__":
    main()
