"""The whole PE: results of jobs in order, however the memories answer, and the cycles that words and passes take."""

from __future__ import annotations

import pytest

from elmoe.errors import ConfigError
from elmoe.rtl.designs import Design, Precision
from elmoe.rtl.pe_bench import AtOnce, AtRandom, emit_pe, run_behavioural_pe, run_icarus_pe
from elmoe.rtl.tile import PIPELINE_CYCLES, Job, PeShape
from elmoe.rtl.verify import SMALL_PE, pe_jobs, random_operands
from rtl.conftest import needs_icarus


def wanted(jobs):
    return [word for item in jobs for word in item.results]


@pytest.mark.parametrize("design", [Design.AUGMENTED, Design.CONVENTIONAL])
@pytest.mark.parametrize("memories", [AtOnce(), AtRandom(1), AtRandom(2, 0.2)])
def test_results(design, memories):
    jobs = pe_jobs(SMALL_PE, design)
    assert run_behavioural_pe(design, SMALL_PE, jobs, memories).results == wanted(jobs)


@pytest.mark.parametrize(
    "shape",
    [
        PeShape(rows=3, columns=8, port_bits=256, row_blocks=3),
        PeShape(rows=1, columns=5, port_bits=128, row_blocks=4),
    ],
)
def test_other_shapes(shape):
    jobs = pe_jobs(shape, Design.AUGMENTED)
    assert run_behavioural_pe(Design.AUGMENTED, shape, jobs, AtRandom(4)).results == wanted(jobs)


@pytest.mark.parametrize("precision", Precision)
@pytest.mark.parametrize("rows", [2, 4])
def test_weights_change_once_per_tile_of_words(precision, rows):
    """32 KB of WMEM cannot deliver a tile per cycle: the port's words are what bounds small batches."""
    job = random_operands(SMALL_PE, Design.AUGMENTED, precision, (rows, 4, 320), 1)
    run = run_behavioural_pe(Design.AUGMENTED, SMALL_PE, [job])
    words, passes = SMALL_PE.tile_words(precision), job.job.blocks * (2 if precision is Precision.W8 else 1)
    assert [later - earlier for earlier, later in zip(run.advanced, run.advanced[1:], strict=False)] == [
        max(words, passes)
    ] * 9
    assert run.advanced[0] == words
    assert run.finished == [cycle + passes + PIPELINE_CYCLES for cycle in run.advanced]


def test_the_default_port():
    """1024 bits: a fresh W4 tile every 5 cycles, W8 every 9."""
    assert (PeShape().tile_words(Precision.W4), PeShape().tile_words(Precision.W8)) == (5, 9)


@needs_icarus
def test_emitted_verilog_gives_the_same_results_in_the_same_cycles(yosys):
    shape = PeShape(rows=1, columns=4, port_bits=128, row_blocks=2)
    jobs = [
        random_operands(shape, Design.AUGMENTED, precision, (2, 4, inputs), 1)
        for precision, inputs in ((Precision.W8, 96), (Precision.W4, 128))
    ]
    text = emit_pe(Design.AUGMENTED, shape, yosys)
    run, naive = run_icarus_pe(text, shape, jobs), run_behavioural_pe(Design.AUGMENTED, shape, jobs)
    assert run.results == wanted(jobs)
    assert (run.advanced, run.finished) == (naive.advanced, naive.finished)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"rows": 0}, "a PE has 1 to 255 rows, columns and row blocks, not \\(0, 32, 2\\)"),
        ({"row_blocks": 256}, "a PE has 1 to 255 rows"),
        ({"port_bits": 100}, "port_bits = 100: the port must carry whole columns of 128 bits"),
        ({"port_bits": 1536}, "fill a plane of 4096 in whole words"),
        ({"port_bits": 4096}, "comes in 2 words, but a sum needs 5 cycles between two groups; make the port narrower"),
    ],
)
def test_impossible_shapes(arguments, complaint):
    with pytest.raises(ConfigError, match=complaint):
        PeShape(**arguments)


def test_impossible_jobs():
    with pytest.raises(ConfigError, match="a job has 1 to 2 blocks of 16 rows, not 3"):
        Job(1, 1, 3, Precision.W4).check(PeShape())
    with pytest.raises(ConfigError, match="groups and column tiles of a job must lie in"):
        Job(0, 1, 1, Precision.W4).check(PeShape())
