"""Made-up sources for figures: rows as the command line would gather them, without engine and RTL."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

from elmoe.report.sources import AREA, ELASTICITY, LOCALITY, GivenMachine, Sources

ABOUT = {"measured_model": "tiny", "workload": "code", "prompts": "code", "limit": 2, "max_tokens": 8}
FRACTIONS = (1.0, 0.75, 0.5, 0.375, 0.25)
MACHINE = """base = "elmoe-3d"
name = "my-box"
description = "half the external bandwidth"

[ext]
gb_per_s = { value = 51.2, unit = "GB/s", source = "what if", status = "assumed" }
"""


def grid() -> list[dict[str, Any]]:
    """Elasticity, every setting that the engine measures."""
    hot = [(bits, share, "augment" if bits < 8 else "none", "hot") for bits, share in product(range(2, 9), FRACTIONS)]
    treated = [(bits, 1.0, name, "hot") for bits in range(2, 8) for name in ("truncate", "round", "dedicated")]
    random = [(bits, share, "augment" if bits < 8 else "none", "random") for bits in (4, 8) for share in FRACTIONS[1:]]
    return [
        {"kind": "measured", "bits": bits, "pool_fraction": share, "treatment": treatment, "pool": pool}
        | {"agreement": share * bits / 8 * (0.8 if pool == "random" else 1), "overlap": 0.5, "positions": 60}
        | ABOUT
        for bits, share, treatment, pool in (*hot, *treated, *random)
    ]


def locality() -> list[dict[str, Any]]:
    """Routing, two batches."""
    activation = [
        {"kind": "activation", "mode": mode, "batch": batch, "passes": 3, "sequences_per_pass": batch}
        | {"tokens_per_pass": batch * (1 if mode == "ar" else 2.5), "experts_per_pass": 4.0 * batch}
        | {"experts_per_token": 4.0 if mode == "ar" else 3.0}
        for mode, batch in product(("ar", "sd"), (1, 2))
    ]
    unique = [
        {"kind": "unique", "where": where, "tokens": number, "experts_per_layer": 4.0 * number}
        for where, number in product(("inside", "across"), (1, 2, 3))
    ]
    misses = [
        {"kind": "misses", "batch": batch, "policy": policy, "capacity_share": share, "miss_rate": 1 - share}
        for batch, policy, share in product((1, 4), ("lru", "belady"), (0.5, 1.0))
    ]
    return [row | ABOUT for row in (*activation, *unique, *misses)]


def area() -> list[dict[str, Any]]:
    """Two parts of a PE."""
    return [
        {"design": design, "part": part, "pes": 16, "um2": um2, "status": "measured", "source": "made up"}
        for design, part, um2 in (
            ("conventional", "dot products", 100.0),
            ("conventional", "weight and activation registers, encoders, sequencer", 50.0),
            ("augmented", "dot products", 101.0),
            ("augmented", "weight and activation registers, encoders, sequencer", 50.0),
        )
    ]


def sources(folder: Path) -> Sources:
    """Everything."""
    machine = folder / "my_box.toml"
    machine.write_text(MACHINE, encoding="utf-8")
    rows = {ELASTICITY: grid(), LOCALITY: locality(), AREA: area()}
    digests = dict.fromkeys(rows, "made up")
    return Sources(rows, digests, (GivenMachine(str(machine), "0123"),))
