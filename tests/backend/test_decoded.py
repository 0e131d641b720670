import numpy as np
import pytest

from elmoe.backend.decoded import TARGET, Activations, DecodedWeights, gate_and_up
from elmoe.backend.protocol import DraftQuality
from elmoe.models.program import GatedMlp, Linear
from elmoe.quant.bitnested import Treatment, dequantize, draft_codes, quantize_dedicated
from elmoe.quant.tiles import plane_bytes, unpack

QUALITIES = [TARGET, *(DraftQuality(bits, treatment) for bits in range(2, 8) for treatment in Treatment)]


def by_definition(codes, scales, quality):
    """Codes and scales of a matrix at a quality, from `quant/`."""
    if quality.bits == 8:
        return codes, scales
    if quality.treatment is Treatment.DEDICATED:
        return quantize_dedicated(dequantize(codes, scales), quality.bits)
    return draft_codes(codes, quality.bits, quality.treatment), scales


def matrix(decoded):
    """[G, 32, N] -> [N, K]."""
    return decoded.codes.reshape(-1, decoded.codes.shape[-1]).T


@pytest.mark.parametrize("quality", QUALITIES, ids=lambda q: f"{q.bits}-{q.treatment.value}")
def test_every_quality_of_dense_and_expert_matrices(tiny, quality):
    weights = DecodedWeights(tiny, Activations.INT8)
    linear = tiny.program.layers[1].attention.qkv
    stored = unpack(*tiny.linear_planes(linear.name), linear.outputs, linear.inputs)
    codes, scales = by_definition(*stored, quality)
    decoded = weights.linear(linear, quality)
    assert (matrix(decoded) == codes).all()
    assert (scales == decoded.scales.T).all()
    assert weights.linear(linear, quality) is decoded, "decoded once"

    block = tiny.program.moe_blocks[2]
    gate_up, down = block.expert.gate_up, block.expert.down
    msb_split, lsb_split = plane_bytes(gate_up.outputs, gate_up.inputs)
    msb, lsb = tiny.expert_msb(2, 5), tiny.expert_lsb(2, 5)
    parts = ((gate_up, msb[:msb_split], lsb[:lsb_split]), (down, msb[msb_split:], lsb[lsb_split:]))
    for got, (spec, upper, lower) in zip(weights.expert(block, 5, quality), parts, strict=True):
        codes, scales = by_definition(*unpack(upper, lower, spec.outputs, spec.inputs), quality)
        assert (matrix(got) == codes).all()
        assert (scales == got.scales.T).all()


def test_fp32_activations_take_the_dequantised_weights(tiny):
    linear = tiny.program.layers[0].attention.out
    codes, scales = unpack(*tiny.linear_planes(linear.name), linear.outputs, linear.inputs)
    decoded = DecodedWeights(tiny, Activations.FP32).linear(linear, TARGET)
    assert (dequantize(codes, scales) == decoded.codes[0].T).all()


def test_gate_and_up_undo_the_interleave_of_16_rows():
    spec = GatedMlp(Linear("gate_up", 96, 32), Linear("down", 32, 48))
    gate, up = np.arange(48.0), 100 + np.arange(48.0)
    mixed = np.concatenate([np.concatenate([gate[i : i + 16], up[i : i + 16]]) for i in (0, 16, 32)])
    got = gate_and_up(np.stack([mixed, -mixed]).astype(np.float32), spec)
    assert (got[0] == [gate, -gate]).all()
    assert (got[1] == [up, -up]).all()
