"""Prints the table of docs/speculation.md: the controller on simulated machines. About two minutes.

python tests/engine/controller_grid.py
"""

from itertools import product, repeat
from statistics import median

from simulated_machine import Machine, decode, linear, moe

from elmoe.engine.controller import Controller, Speculation

SHAPES = ((2, 4, 8), (1, 4, 4), (1, 8, 8))
CURVES = (linear(0.02), linear(0.1), linear(0.3), linear(1.0), moe)
CASES = list(product(SHAPES, (1, 4, 16), (0.2, 0.4, 0.7, 1.0), CURVES, (0.2, 0.5, 0.7, 0.85, 0.95), (1, 2)))


def figures(tokens: int) -> list[str]:
    """One column of the table."""
    to_plain, to_best, switches = [], [], []
    for shape, batch, draft, curve, chance, seed in CASES:
        speculation = Speculation(width=shape[0], depth=shape[1], verify=shape[2])
        machine, controller = Machine(curve, draft, chance, seed=seed), Controller()
        rate = decode(controller, machine, speculation, repeat(batch), tokens).rate
        plain, (best, depth) = machine.rate(speculation, 0, batch), machine.best(speculation, batch)
        to_plain.append((rate / plain, depth))
        if best > 1.1 * plain:
            to_best.append(rate / best)
        switches.append(controller.switches)
    at_home = [ratio for ratio, depth in to_plain if depth == 0]
    return [
        f"{min(to_plain)[0]:.3f}",
        f"{sum(ratio < 0.97 for ratio, _ in to_plain)} of {len(to_plain):,}",
        f"{median(at_home):.3f} ({len(at_home):,} cases)",
        f"{median(to_best):.3f} ({len(to_best)} cases)",
        f"{sum(ratio < 0.95 for ratio in to_best)}, the worst {min(to_best):.3f}",
        str(max(switches)),
    ]


ROWS = (
    "speed against AR, worst case",
    "cases below 0.97 of AR",
    "speed against AR where AR is best, median",
    "speed against the best depth where it wins by more than 10 %, median",
    "of these, cases below 0.95 of the best depth",
    "switches, most",
)

if __name__ == "__main__":
    print("| | 2,000 tokens per sequence | 128 tokens per sequence |\n|---|--:|--:|")
    for row in zip(ROWS, figures(2000), figures(128), strict=True):
        print("| " + " | ".join(row) + " |")
