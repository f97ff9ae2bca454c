"""Agents that do not learn."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fq_toolkit.prevalent import MiniWorld
from fq_toolkit.prevalent.data.splits import Split
from fq_toolkit.prevalent.tasks.baselines import BASELINES, baseline_records
from fq_toolkit.prevalent.tasks.r2r.evaluation import score_split


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_baselines_walk_along_edges_and_the_shortest_path_scores_1(mini: MiniWorld, seed: int) -> None:
    split = Split("val", mini.items(4, seed=seed), mini, mini.features())
    for name in BASELINES:
        for item, record in zip(
            split.items, baseline_records(name, split, max_steps=8, seed=seed), strict=True
        ):
            places = [mini.scan(item.scan).locate(pose[0]) for pose in record["trajectory"]]
            assert places[0] == mini.scan(item.scan).locate(item.start)
            assert len(places) <= 9
            assert all(mini.scan(item.scan).adjacent[a, b] for a, b in pairwise(places))
    shortest = baseline_records("shortest path", split, max_steps=8)
    assert score_split(split, shortest).SPL == pytest.approx(1)
