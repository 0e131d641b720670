import pytest

from elmoe.backend.protocol import DraftQuality
from elmoe.engine.controller import Mode, Speculation
from elmoe.errors import ConfigError


@pytest.mark.parametrize(("mode", "depths"), [(Mode.AR, [0, 0, 0]), (Mode.SD, [3, 3, 3]), (Mode.AUTO, [0, 0, 3])])
def test_depth_by_mode_and_batch(mode, depths):
    speculation = Speculation(mode=mode, depth=3, tau=4)
    assert [speculation.depth_for(batch) for batch in (1, 3, 4)] == depths


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"width": 0}, "speculation width must be a whole number from 1 to 64, not 0"),
        ({"depth": -1}, "speculation depth must be a whole number from 0 to 64, not -1"),
        ({"verify": 0}, "speculation verify must be a whole number from 1 to 1024, not 0"),
        ({"tau": 0}, "speculation tau must be a whole number from 1 to 1024, not 0"),
        ({"width": 10**9}, "speculation width must be a whole number from 1 to 64, not 1000000000"),
        ({"depth": 2.0}, "speculation depth must be a whole number from 0 to 64, not 2.0"),
        ({"mode": "sd"}, "speculation mode must be Mode.AR, Mode.SD or Mode.AUTO, not 'sd'"),
    ],
)
def test_impossible_speculation_is_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        Speculation(**settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"bits": 1}, "draft bits must be 2 to 7, or 8 for undegraded weights, not 1"),
        ({"bits": 9}, "draft bits must be 2 to 7, or 8 for undegraded weights, not 9"),
        ({"experts_per_tok": 0}, "draft experts per token must be at least 1, not 0"),
    ],
)
def test_impossible_draft_quality_is_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        DraftQuality(**settings)
