"""The bandwidth probe: a plausible rate, kept."""

from elmoe.bench import bandwidth
from elmoe.bench.bandwidth import BandwidthProbe


def test_it_reads_memory_and_keeps_the_rates(monkeypatch):
    monkeypatch.setattr(bandwidth, "PROBE_BYTES", 1 << 22)
    probe = BandwidthProbe()
    assert 0.1 < probe() < 10_000
    probe()
    assert len(probe.rates) == 2
    assert min(probe.rates) <= probe.median <= max(probe.rates)
