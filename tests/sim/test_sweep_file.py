"""What is wrong with a sweep is said with file, key and remedy, before anything is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from elmoe.errors import ConfigError, ElmoeError
from elmoe.sim.sweep import Sweep
from elmoe.sim.sweep_file import load_sweep

Make = Callable[[str], Sweep]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def written(text: str) -> Sweep:
        path = tmp_path / "sweep.toml"
        path.write_text(text, encoding="utf-8")
        return load_sweep(path)

    return written


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("models = [", "is not TOML"),
        ('modells = ["x"]', "unknown field 'modells'; did you mean 'models'"),
        ('models = ["qwen3-30b"]', "unknown model 'qwen3-30b'; did you mean 'qwen3-30b-a3b'"),
        ('systems = ["elmo-3d"]', "unknown system 'elmo-3d'; did you mean 'elmoe-3d'"),
        ('systems = ["mine.toml"]', "mine.toml does not exist"),
        ('schemes = ["elastc"]', "schemes: unknown 'elastc'; did you mean 'elastic'"),
        ('modes = ["fast"]', "modes: unknown 'fast'; known are ar, sd"),
        ('workloads = ["gsm"]', "workloads: unknown 'gsm'; did you mean 'gsm8k'"),
        ("models = []", 'models is empty; give for example ["qwen3-30b-a3b"], or leave it out'),
        ("batches = 4", "batches must be a list, for example [1, 4]"),
        ("models = [1]", "models: 1 is not a name"),
        ("batches = [1, 1]", "batches: 1 is given twice"),
        ("batches = [0]", "batches: must be whole numbers from 1 to 4096, not 0"),
        ("batches = [1.5]", "batches: must be whole numbers"),
        ("batches = [true]", "batches: must be whole numbers"),
        ("contexts = [99999999]", "contexts: must be whole numbers from 1 to 262144, not 99999999"),
        ("hb_gb = [3.1]", "hb-gb must be a positive multiple of 0.25"),
        ("hb_gb = [nan]", "hb_gb: nan is not a number"),
        ('hb_gb = ["4"]', "hb_gb: '4' is not a number; write hb_gb = [4, 8]"),
        ("acceptance = [1.5]", "acceptance: must lie in 0..1, not 1.5"),
        ("vary = 1", "vary must be a table"),
        ('[vary]\n"ext.gb_per_sec" = [1]', "vary: unknown field 'ext.gb_per_sec'; did you mean 'ext.gb_per_s'"),
        ('[vary]\n"exr.gb_per_s" = [1]', "did you mean 'ext.gb_per_s'"),
        ("[vary]\next = [1]", "vary: unknown field 'ext'"),
        ('[vary]\n"ext.gb_per_s" = []', "vary: ext.gb_per_s is empty"),
        ('[vary]\n"ext.gb_per_s" = 5', "vary: ext.gb_per_s must be a list"),
        ('[vary]\n"ext.gb_per_s" = [-5]', "vary: ext.gb_per_s: must be above 0, not -5"),
        ('[vary]\n"ext.gb_per_s" = ["fast"]', "vary: ext.gb_per_s: 'fast' is not a number"),
        ('[vary]\n"ext.gb_per_s" = [5, 5.0]', "vary: ext.gb_per_s: 5.0 is given twice"),
        ('[vary]\n"compute.pes" = [1.5]', "vary: compute.pes: 1.5 is not an integer"),
        (
            '[vary]\n"ext.gb_per_s" = { values = [5], unit = "GiB/s" }',
            "ext.gb_per_s: is in 'GB/s', not 'GiB/s'; convert the values",
        ),
        ('[vary]\n"ext.gb_per_s" = { value = [5] }', "unknown field 'value'; did you mean 'values'"),
        ('[vary]\n"ext.gb_per_s" = { unit = "GB/s" }', "ext.gb_per_s must be a list"),
        ('[vary]\n"ext.gb_per_s" = [5]\next.gb_per_s = [6]', "'ext.gb_per_s' is given twice"),
        ('[vary]\n"ext.device" = ["lpddr9"]', "ext.device: unknown DRAM device 'lpddr9'"),
        ('[vary]\n"near.tops" = [5]', "vary: near.tops: no system of this sweep has near; leave the field out"),
        ('systems = ["xpu"]\n[vary]\n"hb.channels" = [5]', "hb.channels: no system of this sweep has hb"),
        ('hb_gb = [4]\n[vary]\n"hb.capacity_gb" = [5]', "hb.capacity_gb is what hb_gb sets"),
    ],
)
def test_a_wrong_sweep_names_file_key_and_remedy(make: Make, tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ElmoeError) as caught:
        make(text)
    assert complaint in str(caught.value)
    assert str(tmp_path / "sweep.toml") in str(caught.value)


def test_two_systems_of_one_name(make: Make, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('base = "elmoe-3d"\nname = "elmoe-3d"', encoding="utf-8")
    with pytest.raises(ConfigError, match="two are named 'elmoe-3d'; give each its own name in its file"):
        make(f'systems = ["elmoe-3d", "{mine}"]')


def test_a_sweep_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.toml does not exist"):
        load_sweep(tmp_path / "nowhere.toml")
