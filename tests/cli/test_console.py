import pytest

from elmoe.cli.console import human_bytes, parse_bytes, parse_integers
from elmoe.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GiB", 8 * 2**30), ("512MB", 512 * 10**6), ("1000000", 10**6), ("1.5 kB", 1500), ("3b", 3), (None, None)],
)
def test_bytes_are_read_with_their_unit(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "eight", "8 GiBs", "-1", "1e9", "GiB"])
def test_unreadable_bytes_are_refused(text):
    with pytest.raises(ConfigError, match="write for example 8GiB, 512MB or 1000000"):
        parse_bytes(text)


def test_integers():
    assert parse_integers("1,2, 3", "--tokens") == [1, 2, 3]
    with pytest.raises(ConfigError, match="--tokens: cannot read '1,x'; write integers"):
        parse_integers("1,x", "--tokens")


def test_bytes_are_shown_in_decimal_units():
    assert [human_bytes(n) for n in (0, 999, 13_721_600, 8.5e9, 3e12)] == ["0 B", "999 B", "13.7 MB", "8.5 GB", "3 TB"]
