"""Tables of numbers with unit, source and status: what is read, and every way in which one is refused."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from elmoe.errors import ConfigError
from elmoe.sim.quantity import Quantity, Spec, Status, nearest, quantity, refuse_unknown


@dataclass(frozen=True)
class Engine(Spec):
    WHAT: ClassVar[str] = "engine"

    cylinders: int = quantity("1", above=0)
    power_kw: float = quantity("kW", minimum=0, maximum=1000)
    fuel: str = quantity("name", choices=("petrol", "diesel"))
    gears: int = quantity("1", above=0, default=5)


GOOD: dict[str, Any] = {
    "cylinders": {"value": 4, "unit": "1", "source": "the manual", "status": "datasheet"},
    "power_kw": {"value": 66, "unit": "kW", "source": "the manual", "status": "datasheet"},
    "fuel": {"value": "diesel", "unit": "name", "source": "a guess", "status": "assumed"},
}


def read(**changes: Any) -> Engine:
    """GOOD with some entries (dictionaries) updated, or replaced (anything else)."""
    merged = {key: (GOOD.get(key, {}) | value if isinstance(value, dict) else value) for key, value in changes.items()}
    return Engine.from_table(GOOD | merged, "car.toml: engine")


def test_values_have_their_types_and_keep_their_sources() -> None:
    engine = read()
    assert (engine.cylinders, engine.power_kw, engine.fuel, engine.gears) == (4, 66.0, "diesel", 5)
    assert isinstance(engine.power_kw, float)
    assert engine.quantities["power_kw"] == Quantity(66.0, "kW", "the manual", Status.DATASHEET)
    assert "gears" not in engine.quantities
    whole = read(cylinders={"value": 6.0})
    assert (whole.cylinders, type(whole.cylinders)) == (6, int)


def test_numbers_count_for_equality_and_sources_do_not() -> None:
    assert read() == read(cylinders={"source": "somebody"})
    assert read() != read(cylinders={"value": 8})


def test_changed_values_name_their_reason() -> None:
    engine = read().changed("tuned", power_kw=80.0)
    assert engine.power_kw == 80
    assert engine.quantities["power_kw"] == Quantity(80.0, "kW", "tuned", Status.DATASHEET)
    assert engine.quantities["cylinders"] == read().quantities["cylinders"]


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("power_kw", 66, r'engine.power_kw: write { value = 66, unit = "kW", source = "...", status = "..." }'),
        ("power_kw", {"unit": "hp"}, "engine.power_kw: is in 'kW', not 'hp'; convert the value"),
        ("power_kw", {"source": "  "}, "engine.power_kw: source is empty; say where the number comes from"),
        ("power_kw", {"source": 3}, "engine.power_kw: source is empty"),
        ("power_kw", {"status": "rumour"}, "status 'rumour' is not one of datasheet, paper, measured, assumed"),
        ("power_kw", {"status": ["paper"]}, "status ['paper'] is not one of"),
        ("power_kw", {"vlaue": 3}, "engine.power_kw: unknown field 'vlaue'; did you mean 'value'?"),
        ("power_kw", {"value": -1}, "engine.power_kw: must be at least 0, not -1"),
        ("power_kw", {"value": 1001}, "engine.power_kw: must be at most 1000, not 1001"),
        ("power_kw", {"value": "66"}, "engine.power_kw: '66' is not a number"),
        ("power_kw", {"value": [66]}, "engine.power_kw: [66] is not a number"),
        ("power_kw", {"value": float("nan")}, "engine.power_kw: nan is not a number"),
        ("power_kw", {"value": float("inf")}, "engine.power_kw: inf is not a number"),
        ("power_kw", {"value": 1e16}, "engine.power_kw: the value is beyond any machine; check the unit"),
        ("power_kw", {"value": 1e-300}, "engine.power_kw: the value is beyond any machine; check the unit"),
        ("cylinders", {"value": 10**400}, "engine.cylinders: the value is beyond any machine; check the unit"),
        ("cylinders", {"value": 0}, "engine.cylinders: must be above 0, not 0"),
        ("cylinders", {"value": 2.5}, "engine.cylinders: 2.5 is not an integer"),
        ("cylinders", {"value": True}, "engine.cylinders: True is not an integer"),
        ("fuel", {"value": "steam"}, "engine.fuel: 'steam' is not one of petrol, diesel"),
        ("fuel", {"value": 3}, "engine.fuel: 3 is not one of petrol, diesel"),
        ("cylindres", {}, "car.toml: engine: unknown field 'cylindres'; did you mean 'cylinders'?"),
        ("quantities", {}, "car.toml: engine: unknown field 'quantities'"),
    ],
)
def test_refusals(field: str, change: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**{field: change})
    assert message in str(caught.value)
    assert str(caught.value).startswith("car.toml: engine")


@pytest.mark.parametrize("key", ["value", "unit", "source", "status"])
def test_every_number_carries_all_four(key: str) -> None:
    entry = {name: value for name, value in GOOD["power_kw"].items() if name != key}
    with pytest.raises(ConfigError, match=rf"engine.power_kw: {key} is missing; every number carries value, unit"):
        Engine.from_table(GOOD | {"power_kw": entry}, "car.toml: engine")


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match=r"car.toml: engine: cylinders is missing; give it a value, unit, source"):
        Engine.from_table({key: GOOD[key] for key in ("power_kw", "fuel")}, "car.toml: engine")


def test_from_a_file() -> None:
    text = 'gears = { value = 6, unit = "1", source = "the gearbox", status = "measured" }'
    assert Engine.from_table(GOOD | tomllib.loads(text), "x").gears == 6


def test_nearest_names() -> None:
    assert nearest("elmoe3d", ("xpu", "elmoe-3d")) == "; did you mean 'elmoe-3d'?"
    assert nearest("zzz", ("xpu", "elmoe-3d")) == "; known are xpu, elmoe-3d"
    refuse_unknown({"a": 1}, ("a", "b"), "here")
    with pytest.raises(ConfigError, match="here: unknown field 'c'; known are a, b"):
        refuse_unknown({"a": 1, "c": 2}, iter(("a", "b")), "here")
