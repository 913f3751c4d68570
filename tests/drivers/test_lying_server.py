"""A short run of ``bench/fuzz_drivers.py``: no lie of a server is ever taken for a value."""

from __future__ import annotations

import pytest

from bench.fuzz_drivers import RUNS, fuzz

pytestmark = pytest.mark.wire


@pytest.mark.parametrize("name", list(RUNS))
async def test_no_lie_is_taken_for_a_value(name: str) -> None:
    score = await fuzz(name, 400, seed=5)
    assert score.sound, score.notes
    assert score.values > 1000, "it has to read something, too"
    assert score.lost > 3, "and to meet some lies"
