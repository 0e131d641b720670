"""A tile of a real layer of the built-in model, with activations of a real pass: golden model, RTL, CPU backend."""

from __future__ import annotations

import numpy as np
import pytest

from backend.passes import run_of, same_bits
from elmoe.backend.cpu import _native
from elmoe.backend.cpu.backend import weight_bits
from elmoe.backend.decoded import TARGET
from elmoe.backend.protocol import DraftQuality
from elmoe.backend.reference import ReferenceBackend
from elmoe.checkpoint.folder import Checkpoint
from elmoe.models.program import Linear
from elmoe.quant.arithmetic import quantize_activations
from elmoe.quant.bitnested import Float32
from elmoe.quant.tiles import pack, unpack
from elmoe.rtl.designs import Design, Precision
from elmoe.rtl.pe_bench import AtRandom, run_behavioural_pe
from elmoe.rtl.tile import PeShape, operands, result_matrix

SHAPE = PeShape(rows=2, columns=4, port_bits=128, row_blocks=2)
ROWS, OUTPUTS = 3, 8


class Watched(ReferenceBackend):
    """Remembers what the linear layers of a pass were given."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.seen: dict[str, Float32] = {}

    def _linear(self, x: Float32, linear: Linear, quality: DraftQuality) -> Float32:
        self.seen[linear.name] = x
        return super()._linear(x, linear, quality)


@pytest.fixture(scope="module")
def layers(tiny):
    """(name, activations [R, K]) of the dense layers, in the order of a pass over a few tokens."""
    backend = Watched(tiny)
    backend.allocate(0, 16)
    backend.forward(run_of([5, 17, 40, 3, 99]))
    return backend.seen, {linear.name: linear for linear in linears(tiny)}


def linears(tiny: Checkpoint) -> list[Linear]:
    found = [tiny.program.head]
    for layer in tiny.program.layers:
        found += [item for item in vars(layer.attention).values() if isinstance(item, Linear)]
    return found


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("place", [0, -1])
def test_golden_rtl_and_cpu_backend_agree(tiny, layers, place, precision):
    seen, known = layers
    name = [name for name in seen if name in known][place]
    linear, x = known[name], np.ascontiguousarray(seen[name][:ROWS])
    msb, lsb = tiny.linear_planes(name)
    codes, scales = unpack(msb, lsb, linear.outputs, linear.inputs)
    codes, scales = codes[:OUTPUTS], scales[:OUTPUTS]

    planes = [aligned(plane) for plane in pack(codes, scales)]
    quality = TARGET if precision is Precision.W8 else DraftQuality(bits=4)
    matrix = _native.Matrix(*planes, OUTPUTS, linear.inputs)
    by_backend = _native.linear(matrix, x, weight_bits(quality))

    made = operands(SHAPE, Design.AUGMENTED, precision, quantize_activations(x), (codes, scales))
    by_golden = result_matrix(SHAPE, made.job, made.results, ROWS, OUTPUTS)
    run = run_behavioural_pe(Design.AUGMENTED, SHAPE, [made], AtRandom(1, 0.9))
    by_rtl = result_matrix(SHAPE, made.job, run.results, ROWS, OUTPUTS)
    assert np.abs(by_backend).max() > 0
    assert same_bits(by_golden, by_backend)
    assert same_bits(by_rtl, by_backend)


def aligned(plane):
    """A copy at a multiple of 64, where the kernels want it."""
    room = np.empty(plane.nbytes + 64, dtype=np.uint8)
    begin = -room.ctypes.data % 64
    room[begin : begin + plane.nbytes] = plane
    return room[begin : begin + plane.nbytes]
