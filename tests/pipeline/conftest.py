"""What holds for every test of the pipeline."""

import pytest


@pytest.fixture(autouse=True)
def short_front(monkeypatch):
    """A front of few points: each takes several solutions of a mixed-integer program."""
    monkeypatch.setattr("shoal.pipeline.plan_search._FRONT_POINTS", 8)
