"""Cases from CSV: the reference runs of an independent simulator, what a row may leave out, refusals by line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from elmoe.errors import ConfigError
from elmoe.sim.dram import Controller, load_device
from elmoe.sim.dram_cases import Case, read_cases, run_cases
from elmoe.sim.request_stream import chunk_of

pytestmark = pytest.mark.timeout(120)

REFERENCE = Path(__file__).parent / "dram_reference.csv"
LPDDR5, HB = load_device("lpddr5-6400-x16"), load_device("hb-bank")


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "cases.csv"
    path.write_text(text, encoding=encoding)
    return path


def case(folder: Path, **values: object) -> Case:
    """The case of a file with one row: a sequence of 100 bursts, and what is given."""
    values = {"pattern": "seq", "mapping": "bgint", "bursts": 100} | values
    path = folder / "one.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([list(values), list(values.values())])
    (found,) = read_cases(path)
    return found


# --- the reference runs ---


def test_every_reference_run_is_reproduced() -> None:
    """Within 0.5 percentage points of peak for long chunks and sequences, 1.5 for short ones; 0.08 on average."""
    with REFERENCE.open(encoding="utf-8", newline="") as file:
        quoted = list(csv.DictReader(file))
    found = run_cases(REFERENCE)
    assert len(found) == len(quoted) == 50
    differences = []
    for line, (reference, result) in enumerate(zip(quoted, found, strict=True), 2):
        size, _ = chunk_of(reference["pattern"])
        difference = result["pct_peak"] - float(reference["pct_peak"])
        differences.append(abs(difference))
        where = f"line {line}: {reference['device']} {reference['pattern']} {reference['mapping']}"
        assert abs(difference) <= (0.5 if size == 0 or size >= 4096 else 1.5), where
        assert result["gb_per_s"] == pytest.approx(float(reference["GBps"]), rel=0.01), where
        for name in ("row_hit", "row_miss", "row_conflict"):
            assert result[name] == pytest.approx(float(reference[name]), abs=0.005), where
        assert result["avg_read_latency_ns"] == pytest.approx(float(reference["avg_read_latency_ns"]), abs=2), where
    assert sum(differences) / len(differences) < 0.1


# --- what a row may leave out, and what it may say ---


def test_needed_columns_are_enough(tmp_path: Path) -> None:
    found = case(tmp_path)
    assert (found.device, found.controller) == (LPDDR5, Controller(mapping="bgint"))
    assert (found.pattern, found.bursts, found.seed) == ("seq", 100, 1)


def test_empty_fields_are_defaults(tmp_path: Path) -> None:
    names = ("device", "ranks", "banks", "row_bytes", "sched", "refresh", "row_policy", "queue", "issue_gap_nCK")
    more = ("seed", "tx_bytes", "peak_GBps", "channels")
    assert case(tmp_path, **dict.fromkeys((*names, *more), "  ")).controller == Controller(mapping="bgint")


def test_all_columns_count(tmp_path: Path) -> None:
    found = case(tmp_path, device="hb-bank", ranks=2, banks="2BGx8", row_bytes=1024, sched="FRFCFS", refresh="pb",
                 row_policy="open", queue=7, issue_gap_nCK=3, seed=9, bursts="1e3", channels=4)  # fmt: skip
    assert (found.device.groups, found.device.banks_per_group, found.device.row_bytes) == (2, 8, 1024)
    assert found.controller == Controller("bgint", queue=7, refresh="pb", ranks=2, channels=4, gap=3)
    assert (found.seed, found.bursts) == (9, 1000)


@pytest.mark.parametrize("gap", [-1, 0, 1])
def test_no_gap_is_as_fast_as_accepted(tmp_path: Path, gap: int) -> None:
    assert case(tmp_path, issue_gap_nCK=gap).controller.gap == 1


@pytest.mark.parametrize(
    ("values", "channels"),
    [
        ({"channels": 8}, 8),
        ({"device": "LPDDR5-6400 x16 16Gb 8ch"}, 8),
        ({"device": "LPDDR5-6400 8 channels"}, 8),
        ({"device": "LPDDR5-6400 x16, 4-channel"}, 4),
        ({"device": "LPDDR5-6400 2x channel"}, 2),
        ({"device": "LPDDR5-6400 8ch", "channels": 2}, 2),
        ({"device": "LPDDR5-6400 8ch", "peak_GBps": 12.8}, 8),
        ({"peak_GBps": 102.4}, 8),
        ({"peak_GBps": "102.40"}, 8),
        ({"peak_GBps": 12.8}, 1),
        ({"device": "HB-like", "peak_GBps": 51.2}, 1),
        ({"device": "HB-like", "peak_GBps": 819.2}, 16),
        ({"device": "LPDDR5-6400 x16 16Gb"}, 1),
    ],
)
def test_channels_by_column_name_or_peak(tmp_path: Path, values: dict[str, object], channels: int) -> None:
    assert case(tmp_path, **values).controller.channels == channels


@pytest.mark.parametrize("name", ["LPDDR5-6400 x16 16Gb", "lpddr5", "lpddr5-6400-x16", "LPDDR5 x16", "LPDDR5-6400"])
def test_names_of_the_external_memory(tmp_path: Path, name: str) -> None:
    assert case(tmp_path, device=name).device == LPDDR5


def test_timings_in_the_name_of_an_hb_device(tmp_path: Path) -> None:
    """In ns, rounded up to clocks of 0.625 ns."""
    assert case(tmp_path, device="hb-bank").device == HB
    assert case(tmp_path, device="HB-like tRCD14/tRP14/tRAS33 tCCDL5.0").device == HB
    found = case(tmp_path, device="HB tRCD10/tRP12.5/tRAS30 tCCDL2.5").device
    assert (found.rcd, found.cl, found.rp, found.ras, found.ccd_l, found.rc) == (16, 16, 20, 48, 4, 68)
    assert case(tmp_path, device="HB tRCD0").device.rcd == 1


def test_other_bursts_have_as_many_pins(tmp_path: Path) -> None:
    """Twice the bytes take twice the clocks, so the peak stays."""
    longer = case(tmp_path, tx_bytes=64).device
    assert (longer.burst_bytes, longer.bl, longer.gb_per_s) == (64, 4, 12.8)
    assert case(tmp_path, device="hb-bank", tx_bytes=32).device.bl == 1


def test_a_device_file(tmp_path: Path) -> None:
    """Also one that is named like a built-in device."""
    path = tmp_path / "lpddr5.toml"
    lines = [
        f'{name} = {{ value = {7 if name == "rcd" else entry.value}, unit = "{entry.unit}", '
        f'source = "a test", status = "assumed" }}'
        for name, entry in LPDDR5.quantities.items()
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert case(tmp_path, device=path).device.rcd == 7


def test_byte_order_mark_line_ends_blank_lines_and_other_columns(tmp_path: Path) -> None:
    text = 'pattern,mapping,bursts,remark\r\n\r\nseq,bgint,10,"one, two"\r\n\r\nu4K, page ,20,\r\n'
    found = read_cases(write(tmp_path, text, "utf-8-sig"))
    assert [(item.pattern, item.controller.mapping, item.bursts) for item in found] == [
        ("seq", "bgint", 10),
        ("u4K", "page", 20),
    ]
    assert found[0].given["remark"] == "one, two"


def test_results_are_in_the_order_of_the_file(tmp_path: Path) -> None:
    lines = ["seq,bgint,2000,none", "rand64,bgint,2000,none", "seq,bgint,2000,ab", "rand64,bgint,2000,none"]
    header = "pattern,mapping,bursts,refresh"
    found = run_cases(write(tmp_path, "\n".join([header, *lines])))
    backwards = run_cases(write(tmp_path, "\n".join([header, *reversed(lines)])))
    assert found == backwards[::-1]
    assert found[0]["pct_peak"] > found[1]["pct_peak"]
    assert found[1] == found[3]
    assert set(found[0]) == {"gb_per_s", "pct_peak", "row_hit", "row_miss", "row_conflict", "avg_read_latency_ns"}


def test_no_rows_no_results(tmp_path: Path) -> None:
    assert run_cases(write(tmp_path, "pattern,mapping,bursts\n")) == []


# --- refusals ---


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mapping": "bgnit"}, "line 2: unknown mapping 'bgnit'; did you mean 'bgint'?"),
        ({"mapping": ""}, "line 2: unknown mapping ''"),
        ({"pattern": "sequential"}, "line 2: unknown pattern 'sequential'; known are seq"),
        ({"pattern": ""}, "line 2: unknown pattern ''"),
        ({"pattern": "chunk4096M"}, "line 2: a chunk of 4294967296 B does not fit a memory of 2147483648 B"),
        ({"device": "DDR4"}, "line 2: unknown DRAM device 'DDR4'"),
        ({"device": "LPDDR5X-8533"}, "line 2: unknown DRAM device 'LPDDR5X-8533'; known are lpddr5-6400-x16"),
        ({"device": "LPDDR5-5500 x16"}, "line 2: unknown DRAM device 'LPDDR5-5500 x16'"),
        ({"device": "nowhere.toml"}, "line 2: nowhere.toml does not exist"),
        ({"device": "HB tRCD" + "9" * 400}, "line 2: DRAM device: rcd is above 100000 clocks"),
        ({"device": "LPDDR5 3ch"}, "line 2: channels must be a power of two up to 1024, not 3"),
        ({"refresh": "sb"}, "line 2: unknown refresh 'sb'"),
        ({"sched": "FCFS"}, "line 2: sched = 'FCFS' is not modelled; known are FRFCFSRowHit, FRFCFS"),
        ({"row_policy": "closed"}, "line 2: row_policy = 'closed' is not modelled; known are open"),
        ({"queue": 0}, "line 2: queue must be 1 to 1024, not 0"),
        ({"queue": "many"}, "line 2: queue = 'many' is not an integer"),
        ({"queue": 2.5}, "line 2: queue = '2.5' is not an integer"),
        ({"bursts": 0}, "line 2: bursts must be 1 to 50000000, not 0"),
        ({"bursts": ""}, "line 2: bursts must be 1 to 50000000, not 0"),
        ({"bursts": -5}, "line 2: bursts must be 1 to 50000000, not -5"),
        ({"bursts": 10**9}, "line 2: bursts must be 1 to 50000000, not 1000000000"),
        ({"bursts": "nan"}, "line 2: bursts = 'nan' is not an integer"),
        ({"bursts": "inf"}, "line 2: bursts = 'inf' is not an integer"),
        ({"bursts": "1e300"}, "line 2: bursts = '1e300' is not an integer"),
        ({"seed": -1}, "line 2: seed must be 0 or more, not -1"),
        ({"seed": "x"}, "line 2: seed = 'x' is not an integer"),
        ({"issue_gap_nCK": 2**50}, "line 2: gap must be 1 to 100000 clocks"),
        ({"ranks": 3}, "line 2: ranks must be a power of two"),
        ({"channels": 5}, "line 2: channels must be a power of two"),
        ({"peak_GBps": "fast"}, "line 2: peak_GBps = 'fast' is not a number"),
        ({"peak_GBps": "nan"}, "line 2: peak_GBps = 'nan' is not a number"),
        ({"peak_GBps": "inf"}, "line 2: peak_GBps = 'inf' is not a number"),
        ({"peak_GBps": 38.4}, "line 2: channels must be a power of two up to 1024, not 3"),
        ({"banks": "16"}, "line 2: banks = '16'; write for example 4BGx4"),
        ({"banks": "3BGx4"}, "line 2: DRAM device: groups = 3 is not a power of two"),
        ({"banks": "4BGx0"}, "line 2: DRAM device: banks_per_group = 0 is not a power of two"),
        ({"banks": "9" * 5000 + "BGx1"}, "write for example 4BGx4"),
        ({"banks": "1048576BGx1048576"}, "line 2: DRAM device: 2 GiB hold no row for each of 1099511627776 banks"),
        ({"row_bytes": 1000}, "line 2: DRAM device: row_bytes = 1000 is not a power of two"),
        ({"row_bytes": 2**50}, "hold no row for each of 16 banks"),
        ({"tx_bytes": 2048}, "line 2: DRAM device: a row of 2048 B holds no two bursts of 2048 B"),
        ({"tx_bytes": 0}, "line 2: tx_bytes = 0: 32 B take 2 clocks"),
        ({"tx_bytes": 8}, "line 2: tx_bytes = 8: 32 B take 2 clocks"),
    ],
)
def test_refusals_name_line_and_column(tmp_path: Path, values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        case(tmp_path, **values)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/one.csv line 2: ")
    assert str(caught.value).count("line 2") == 1


@pytest.mark.parametrize("missing", ["pattern", "mapping", "bursts"])
def test_a_missing_column_is_named(tmp_path: Path, missing: str) -> None:
    names = [name for name in ("pattern", "mapping", "bursts") if name != missing]
    with pytest.raises(ConfigError, match=f"cases.csv: the column '{missing}' is missing; see docs/simulator.md"):
        read_cases(write(tmp_path, ",".join(names) + "\nx,y\n"))
    with pytest.raises(ConfigError, match="the column 'pattern' is missing"):
        read_cases(write(tmp_path, ""))


def test_the_line_is_the_one_of_the_file(tmp_path: Path) -> None:
    """Nothing is simulated before all rows are read."""
    rows = ["pattern,mapping,bursts", "seq,bgint,50000000", "", "seq,bgint,50000000", "seq,bgint,x"]
    with pytest.raises(ConfigError, match="line 5: bursts = 'x' is not an integer"):
        run_cases(write(tmp_path, "\n".join(rows)))


def test_rows_of_another_length(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 3: more fields than the header has"):
        read_cases(write(tmp_path, "pattern,mapping,bursts\nseq,bgint,1\nseq,bgint,1,2\n"))
    with pytest.raises(ConfigError, match="line 2: bursts must be 1 to 50000000, not 0"):
        read_cases(write(tmp_path, "pattern,mapping,bursts\nseq,bgint\n"))


def test_files_that_are_no_csv(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.csv does not exist"):
        read_cases(tmp_path / "nowhere.csv")
    with pytest.raises(ConfigError, match="cannot be read as CSV"):
        read_cases(tmp_path)
    path = tmp_path / "binary.csv"
    for content in (b"\xff\xfe\x00", b'pattern,mapping,bursts\n"' + b"x" * 200_000):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"binary.csv cannot be read as CSV"):
            read_cases(path)
    path.write_bytes(b"pattern,mapping,bursts\nseq,bg\x00int,1\n")
    with pytest.raises(ConfigError, match=r"binary.csv"):
        read_cases(path)
