"""Draws the pictures of docs/img that are ours: `python docs/site/draw.py`. tests/docs hold them to it."""

from __future__ import annotations

from pathlib import Path

from pictures_machine import memory_tiers, simulated_machine, two_mappings
from pictures_step import elastic_sd_step, token_tree
from pictures_weights import batch_invariance, bit_slices, two_elasticities

FOLDER = Path(__file__).parents[1] / "img"
PICTURES = {
    "two-elasticities": two_elasticities,
    "bit-slices": bit_slices,
    "elastic-sd-step": elastic_sd_step,
    "token-tree": token_tree,
    "memory-tiers": memory_tiers,
    "batch-invariance": batch_invariance,
    "simulated-machine": simulated_machine,
    "two-mappings": two_mappings,
}

if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")
