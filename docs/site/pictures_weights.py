"""Pictures about weights: the two elasticities, the bit slices of one code, the order of a sum.

What is computed in them is computed by elmoe's own functions.
"""

from __future__ import annotations

import numpy as np

from elmoe.quant.bitnested import Treatment, draft_codes, slice_codes
from svg import Picture

CODE = 77
"""The weight code of the example."""


def two_elasticities() -> Picture:
    """Experts along one axis, bits along the other; what a draft and a target pass read."""
    pic = Picture(760, 430, "Two elasticities: experts along one axis, bits along the other")
    pool = {1, 2, 5}
    pic.text(20, 26, "One layer's weights, stored once", "bold")
    pic.text(20, 46, "attention, head, shared experts", "soft small")
    pic.text(250, 46, "routed experts, one by one", "soft small")
    pic.box(20, 58, 200, 62, "fast", "MSB plane\nand scales", "small")
    pic.box(20, 124, 200, 46, "fast", "LSB plane", "small")
    for expert in range(8):
        x = 250 + 62 * expert
        hot = expert in pool
        pic.box(x, 58, 54, 62, "fast" if hot else "slow", "MSB", "small")
        pic.box(x, 124, 54, 46, "slow", "LSB", "small")
        pic.text(x + 27, 188, f"{'hot' if hot else ''}", "small soft", "middle")
    pic.line((250, 206), (742, 206))
    pic.text(496, 224, "expert axis: how many experts a token may choose from", "small soft", "middle")
    pic.line((235, 60), (235, 170))
    pic.text(20, 196, "bit axis: how many bits", "small soft")
    pic.text(20, 212, "of a weight are read", "small soft")
    _key(pic, 20, 240)
    pic.text(20, 296, "A draft pass reads", "bold in-draft")
    pic.text(
        20,
        316,
        "MSB planes of the dense weights and of the hot experts that are chosen. Nothing from the slow tier.",
        "small",
    )
    pic.text(20, 346, "A target pass (plain decoding, verify) reads", "bold in-target")
    pic.text(
        20, 366, "both planes of everything dense and of every expert that any row chose, each once per pass:", "small"
    )
    pic.text(20, 384, "of a hot expert only the LSB plane comes from the slow tier, of another one both.", "small")
    pic.text(
        20,
        414,
        "So the hot MSB planes are expert cache and draft model at once: no second copy, no second KV cache.",
        "small bold",
    )
    return pic


def _key(pic: Picture, x: float, y: float) -> None:
    pic.box(x, y, 18, 18, "fast")
    pic.text(x + 26, y + 14, "fast tier (HB on the accelerator): small, many GB/s", "small")
    pic.box(x + 370, y, 18, 18, "slow")
    pic.text(x + 396, y + 14, "slow tier (EXT): large, few GB/s", "small")


def bit_slices() -> Picture:
    """One code, its slices, its draft values and what the multiplier sees."""
    codes = np.array([CODE], dtype=np.int8)
    msb, lsb = (int(part[0]) for part in slice_codes(codes))
    pic = Picture(760, 470, "The MSB and LSB slices of one weight code, and LSB augmentation")
    pic.text(20, 26, f"One INT8 code, q = {CODE}", "bold")
    _bits(pic, 20, 40, f"{msb & 15:04b}", "fast")
    _bits(pic, 156, 40, f"{lsb:04b}", "slow")
    pic.text(85, 92, f"MSB: q >> 4 = {msb}", "small", "middle")
    pic.text(221, 92, f"LSB: q & 15 = {lsb}", "small", "middle")
    pic.text(310, 62, f"q = 16 x {msb} + {lsb} = {16 * msb + lsb}, exactly: both slices are the target", "small")
    _number_line(pic, codes, msb)
    pic.text(20, 310, "What a multiplier sees: one 5-bit signed field per pass, chosen by one multiplexer", "bold")
    rows = (
        ("draft (W4)", f"{msb & 15:04b}", "1", "MSBs, then a constant 1", 8),
        ("target (W8), first pass", f"{msb & 15:04b}", "0", "MSBs, then a 0", 8),
        ("target (W8), second pass", "0", f"{lsb:04b}", "a 0, then the LSBs", 1),
    )
    for number, (name, left, right, what, worth) in enumerate(rows):
        y = 326 + 46 * number
        pic.text(20, y + 20, name, "small")
        _bits(pic, 200, y, left, "fast" if len(left) == 4 else "plain")
        _bits(pic, 200 + 34 * len(left), y, right, "slow" if len(right) == 4 else "draft" if right == "1" else "plain")
        field = int(left + right, 2)
        pic.text(390, y + 20, f"= {field}, counts {worth}: {field * worth}", "small mono")
        pic.text(560, y + 20, what, "small soft")
    return pic


def _bits(pic: Picture, x: float, y: float, bits: str, kind: str) -> None:
    for number, bit in enumerate(bits):
        pic.box(x + 34 * number, y, 30, 32, kind, bit, "mono bold")


def _number_line(pic: Picture, codes: np.ndarray, msb: int) -> None:
    """The draft values of three treatments beside the code, on the line of one MSB unit."""
    left, scale, y = 60, 40, 190
    low = 16 * msb
    pic.text(20, 130, "What a draft without the LSB slice takes it for", "bold")
    pic.line((left, y), (left + 16 * scale, y), head=False)
    for step in range(17):
        pic.line((left + step * scale, y - 5), (left + step * scale, y + 5), head=False)
        pic.text(left + step * scale, y + 22, str(low + step), "small soft", "middle")
    pic.circle(left + (CODE - low) * scale, y, 7, "target")
    pic.text(left + (CODE - low) * scale, y - 14, f"q = {CODE}", "small bold", "middle")
    notes = (
        (Treatment.TRUNCATE, "bad", "truncated, zeros below", "start"),
        (Treatment.AUGMENT, "draft", "augmented, half a unit below", "middle"),
        (Treatment.ROUND, "plain", "rounded: other stored bits", "end"),
    )
    for treatment, kind, what, anchor in notes:
        value = int(draft_codes(codes, treatment=treatment)[0])
        x = left + (value - low) * scale
        pic.circle(x, y, 7, kind)
        pic.text(x, y + 46, f"{value}: {what}", "small", anchor)
        pic.text(x, y + 62, f"off by {abs(CODE - value)}", "small soft", anchor)
    pic.text(
        20,
        278,
        "Over all codes: truncation is off by 0 to 15, always downwards; augmentation by -8 to 7.",
        "small soft",
    )


def batch_invariance() -> Picture:
    """One row's dot product has one order of sums, whatever is computed beside it."""
    pic = Picture(760, 470, "A row's sums have one fixed order, whatever else is in the pass")
    pic.text(20, 26, "One output of one row: inputs in groups of 32", "bold")
    for group in range(4):
        x = 20 + 150 * group
        last = group == 3
        pic.box(x, 42, 130, 40, "target", f"group {'G' if last else group + 1}: 32 terms", "small")
        pic.line((x + 65, 82), (x + 65, 100))
        pic.box(x, 102, 130, 40, "plain", "INT32 sum, exact:\nany order will do", "small")
        pic.line((x + 65, 142), (x + 65, 160))
        pic.box(x, 162, 130, 28, "plain", "x scale, to FP32", "small")
        pic.line((x + 65, 190), (x + 65, 214))
        if group:
            pic.line((x - 20, 230), (x, 230))
    for group in range(4):
        pic.box(20 + 150 * group, 216, 130, 28, "fast", "+ FP32", "small")
    pic.text(612, 226, "groups ascending,", "small soft")
    pic.text(612, 244, "always", "small soft")
    pic.text(20, 282, "The same row in three passes: the same operations in the same order, so the same bits", "bold")
    for number, (name, rows) in enumerate(
        (("plain decoding", "T"), ("a batch of four", "oToo"), ("a verify tree", "ooTooo"))
    ):
        x = 20 + 250 * number
        pic.text(x, 306, name, "small soft")
        for row, mark in enumerate(rows):
            pic.box(
                x + 34 * row, 314, 30, 30, "target" if mark == "T" else "plain", "row" if mark == "T" else "", "small"
            )
    one, tiny = np.float32(1), np.float32(2**-24)
    left, right = (one + tiny) + tiny, one + (tiny + tiny)
    pic.text(20, 384, "Why it matters: FP32 sums depend on their order", "bold")
    pic.text(20, 408, f"(1 + 2^-24) + 2^-24 = {left:.9f}", "mono small")
    pic.text(20, 428, f"1 + (2^-24 + 2^-24) = {right:.9f}", "mono small")
    pic.text(290, 408, "A kernel that splits sums by batch size may round otherwise in a", "small soft")
    pic.text(290, 426, "verify pass; at a near tie the text becomes another one.", "small soft")
    return pic
