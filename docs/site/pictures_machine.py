"""Pictures about memory and the simulated machine. Bytes and rates are the simulator's own."""

from __future__ import annotations

import numpy as np

from elmoe.sim.memory_map import memory_map
from elmoe.sim.model import load_model
from elmoe.sim.profile import scheme_specs
from elmoe.sim.spec import load_machine
from svg import Picture

MODEL, HB_GB = "qwen3-30b-a3b", 8
POINTS = ((1, 1024), (4, 1024), (16, 1024), (1, 32768), (4, 8192), (4, 32768))


def memory_tiers() -> Picture:
    """What lies in HB and in EXT at several batches and contexts."""
    batch = np.array([point[0] for point in POINTS], dtype=np.float64)
    context = np.array([point[1] for point in POINTS], dtype=np.float64)
    machine, model = load_machine("elmoe-3d").with_hb_gb(HB_GB), load_model(MODEL)
    places = memory_map(machine, model, "elastic", batch, context, scheme_specs())
    pic = Picture(760, 440, "Memory map of the fast tier at several batches and contexts")
    pic.text(20, 26, f"{HB_GB} GB of fast memory (HB), {MODEL}: dense weights first, KV next, then the pool", "bold")
    pic.text(20, 58, "batch x context", "soft small")
    pic.text(740, 58, "experts in it, per layer", "soft small", "end")
    scale, left = 440 / HB_GB, 120
    for row, (sequences, tokens) in enumerate(POINTS):
        y = 70 + 42 * row
        pic.text(20, y + 20, f"{sequences} x {tokens // 1024}k", "")
        x = float(left)
        parts = (
            ("target", places.dense, "dense"),
            ("plain", places.kv_hb[row], "KV"),
            ("fast", places.pool_hb[row], "pool"),
        )
        for kind, size, name in parts:
            width = size / 1e9 * scale
            if width > 1:
                label = f"{name} {size / 1e9:.1f}" if width > 60 else f"{size / 1e9:.1f}" if width > 24 else ""
                pic.box(x, y, width, 30, kind, label, "small")
            x += width
        pic.text(740, y + 20, f"{places.draft_experts[row]:.0f} of {model.experts}", "", "end")
        if places.kv_ext[row] > 0:
            pic.text(left + 440 + 8, y + 12, f"{places.kv_ext[row] / 1e9:.1f} of KV", "small in-bad")
            pic.text(left + 440 + 8, y + 26, "in EXT", "small in-bad")
    pic.box(20, 336, 18, 18, "target")
    pic.text(46, 350, "dense weights, both planes", "small")
    pic.box(220, 336, 18, 18, "plain")
    pic.text(246, 350, "keys and values", "small")
    pic.box(360, 336, 18, 18, "fast")
    pic.text(386, 350, "pool: MSB planes of hot experts", "small")
    outside = f"{places.ext[0] / 1e9:.1f} GB"
    pic.text(
        20,
        384,
        f"The slow tier (EXT) holds all experts, hot ones too, and what does not fit: {outside} here.",
        "small soft",
    )
    pic.text(
        20,
        404,
        "Long contexts and large batches eat the pool through the KV cache. When requests end it grows back.",
        "small soft",
    )
    pic.text(20, 424, "Drawn from the simulator's memory map; GB is 1e9 bytes.", "small soft")
    return pic


def simulated_machine() -> Picture:
    """The stack: PEs with their banks, external memory, links."""
    machine = load_machine("elmoe-3d")
    wide = machine.with_hb_gb(HB_GB)
    pic = Picture(760, 400, "The simulated machine: PEs under their own banks of hybrid-bonded memory, LPDDR5 outside")
    pic.text(
        20,
        26,
        f"ELMoE-3D as simulated: {machine.compute.pes} PEs with 4 GB of HB, {wide.compute.pes} with {HB_GB} GB",
        "bold",
    )
    ext = machine.ext
    sizes = f"{ext.channels} channels\n{ext.gb_per_s:g} GB/s\n{ext.capacity_gb:g} GB"
    pic.box(20, 130, 140, 150, "slow", f"EXT\nLPDDR5-6400\n{sizes}", "small")
    pic.text(90, 300, "LSB planes, cold experts", "small soft", "middle")
    assert machine.hb is not None
    assert machine.links is not None
    bank = machine.hb.gb_per_s / machine.hb.channels
    for number in range(5):
        x = 240 + 100 * number
        if number == 3:
            pic.text(x + 42, 134, "...", "bold", "middle")
            continue
        pic.box(x, 60, 84, 54, "fast", f"HB bank\n{bank:g} GB/s", "small")
        pic.line((x + 42, 114), (x + 42, 144))
        pic.box(x, 146, 84, 96, "draft", "PE\n16 x 32 x 32\nmultipliers", "small")
        pic.line((x + 26, 270), (x + 26, 244))
        pic.line((x + 58, 260), (x + 58, 314))
        pic.line((x + 58, 260), (x + 58, 244))
    pic.line((160, 276), (200, 276), (200, 284), (232, 284))
    pic.box(
        232,
        270,
        500,
        28,
        "slow",
        f"streamline {machine.links.streamline_gb_per_s:g} GB/s: weights from EXT to all PEs",
        "small",
    )
    pic.box(
        232,
        314,
        500,
        28,
        "plain",
        f"aggregation {machine.links.aggregation_gb_per_s:g} GB/s per PE: partial sums between PEs",
        "small",
    )
    total, wide_total = machine.hb.gb_per_s, wide.hb.gb_per_s if wide.hb else 0
    times = wide_total / machine.ext.gb_per_s
    pic.text(
        20,
        368,
        f"All banks together: {total:g} GB/s with 4 GB, {wide_total:g} GB/s with {HB_GB} GB: {times:.0f} times EXT.",
        "small soft",
    )
    energies = f"HB {machine.hb.energy_pj_per_bit:g} pJ/bit, EXT {machine.ext.energy_pj_per_bit:g} pJ/bit"
    pic.text(20, 388, f"A PE reads its own bank only. Energy: {energies}.", "small soft")
    return pic


def two_mappings() -> Picture:
    """HB-TP and EXT-DP on four PEs."""
    pic = Picture(760, 330, "HB tensor parallelism and EXT data parallelism")
    for left, title, kind in (
        (20, "HB-TP: weights split, rows replicated", "fast"),
        (400, "EXT-DP: weights broadcast, rows split", "slow"),
    ):
        pic.text(left, 26, title, "bold")
        split = kind == "fast"
        if not split:
            pic.box(left, 44, 340, 30, "slow", "one tile of weights from EXT", "small")
        for pe in range(4):
            x = left + 88 * pe
            if split:
                pic.box(x, 44, 76, 30, "fast", f"columns {pe + 1}/4", "small")
            pic.line((x + 38, 74), (x + 38, 92))
            pic.box(x, 94, 76, 48, "draft", f"PE {pe + 1}", "bold")
            pic.line((x + 38, 166), (x + 38, 144))
            pic.box(x, 168, 76, 30, "target", "all rows" if split else f"rows {pe + 1}/4", "small")
    for left, lines in (
        (
            20,
            (
                "A bank belongs to its PE: its weights can only",
                "be used there. All banks read at once.",
                "Draft: nothing else. Verify: the MSB planes.",
            ),
        ),
        (
            400,
            (
                "EXT is one stream for all: every PE gets the",
                "same weights and does its share of the rows.",
                "Verify: LSB planes and cold experts.",
            ),
        ),
    ):
        for number, line in enumerate(lines):
            pic.text(left, 224 + 18 * number, line, "small soft")
    pic.text(
        20,
        300,
        "In verify both run at once on a hot expert. Products of MSBs and of LSBs meet as partial sums",
        "small",
    )
    pic.text(20, 318, "over the aggregation link, in no more time than it takes to fetch the LSB plane.", "small")
    return pic
