"""The real graphs and annotations through everything; features are made up, as no real ones are at hand."""

import time
from pathlib import Path

import numpy as np
import pytest

from fq_toolkit.prevalent import (
    BatchedNavEnv,
    FeatureStore,
    NavWorld,
    check_disjoint,
    collect_triplets,
    load_ndh,
    load_r2r,
    save_predictions,
    score_ndh,
    score_r2r,
)
from fq_toolkit.prevalent.world.simulator import visible_viewpoints
from tests.prevalent.world.worlds import view_state


def test_the_graphs_are_those_of_the_simulator(real_world: NavWorld) -> None:
    scans = [real_world.scan(name) for name in real_world.names]
    degrees = np.concatenate([scan.mask.sum(axis=1) for scan in scans])
    assert (len(scans), len(degrees), int(degrees.max()), int((degrees == 0).sum())) == (90, 10567, 13, 8)


def test_candidates_are_in_the_view_that_the_simulator_gives(real_world: NavWorld) -> None:
    """All 36 views of some viewpoints, by the simulator's rule."""
    for name in real_world.names[::15]:
        scan = real_world.scan(name)
        for here in range(0, len(scan), 12):
            best: dict[str, tuple[float, int]] = {}
            for view in range(36):
                for other in visible_viewpoints(real_world, view_state(name, scan.viewpoints[here], view))[
                    1:
                ]:
                    gap = float(np.hypot(other.rel_heading, other.rel_elevation))
                    if gap < best.get(other.viewpoint, (np.inf, 0))[0]:
                        best[other.viewpoint] = (gap, view)
            found = {
                scan.viewpoints[j]: int(view)
                for j, view in zip(scan.neighbors[here][scan.mask[here]], scan.views[here], strict=False)
            }
            assert {viewpoint: view for viewpoint, (_, view) in best.items()} == found


@pytest.mark.parametrize("split", ["train", "val_seen", "val_unseen", "test"])
def test_r2r_annotations_fit_the_graphs(real_world: NavWorld, tasks: Path, split: str) -> None:
    items = load_r2r(tasks / f"R2R_{split}.json", world=real_world)
    assert len(items) == {"train": 14039, "val_seen": 1021, "val_unseen": 2349, "test": 4173}[split]
    assert all(bool(item.goals) == (split != "test") for item in items)


def test_r2r_splits_share_no_path(tasks: Path) -> None:
    train = load_r2r(tasks / "R2R_train.json")
    for split in ("val_seen", "val_unseen", "test"):
        check_disjoint(train, load_r2r(tasks / f"R2R_{split}.json"), source="R2R_train.json")


def test_train_alone_gives_as_many_triplets_as_it_should(real_world: NavWorld, tasks: Path) -> None:
    """The published 104k real triplets are train and validation together; train alone is 84,280."""
    counts = {}
    for split in ("train", "val_seen", "val_unseen"):
        items = load_r2r(tasks / f"R2R_{split}.json")
        counts[split] = sum(len(t.path) for t in collect_triplets(real_world, items, lambda text: [0] * 80))
    assert (counts["train"], sum(counts.values())) == (84280, 104491)


@pytest.mark.parametrize("split", ["val_seen", "val_unseen"])
def test_the_teacher_on_r2r_is_scored_as_perfect(
    real_world: NavWorld, tasks: Path, split: str, tmp_path: Path
) -> None:
    annotations = tasks / f"R2R_{split}.json"
    items = load_r2r(annotations)
    env, found = BatchedNavEnv(real_world), []
    for start in range(0, len(items), 256):
        obs = env.reset(items[start : start + 256])
        while not obs.ended.all():
            obs, reward, _ = env.step(obs.teacher)
            assert (reward >= 0).all()
        found += env.trajectories()
    scores = score_r2r(save_predictions(tmp_path / "p.json", found), annotations, real_world)
    for name, value in {"NE": 0, "OE": 0, "SR": 1, "OSR": 1, "SPL": 1}.items():
        assert getattr(scores, name) == pytest.approx(value), name
    shortest = [real_world.distance(item.scan, item.start, item.goals[0]) for item in items]
    assert scores.TL == pytest.approx(np.mean(shortest))
    assert scores.CLS > 0.99  # a few annotated paths are not the shortest


@pytest.mark.parametrize("split", ["val_seen", "val_unseen"])
@pytest.mark.parametrize("target", ["planner", "player", "trusted"])
def test_the_teacher_on_ndh(real_world: NavWorld, tasks: Path, split: str, target, tmp_path: Path) -> None:
    annotations = tasks / f"NDH_{split}.json"
    items = load_ndh(annotations, target=target, world=real_world)
    env = BatchedNavEnv(real_world)
    obs = env.reset(items)
    while not obs.ended.all():
        obs, _, _ = env.step(obs.teacher)
    predictions = save_predictions(tmp_path / "p.json", env.trajectories(), id_field="inst_idx")
    scores = score_ndh(predictions, annotations, real_world, target=target)
    assert (scores.SPL, scores.SR) == (pytest.approx(1), 1)
    assert scores.GP > 1


def test_synthetic_features_of_real_viewpoints(real_world: NavWorld, tasks: Path) -> None:
    world = NavWorld([real_world.scan(name) for name in real_world.names[:3]])
    items = [i for i in load_r2r(tasks / "R2R_train.json") if i.scan in world.names][:8]
    env = BatchedNavEnv(world, FeatureStore.synthetic(world, dim=2048))
    obs = env.reset(items)
    assert obs.view_features().shape == (len(items), 36, 2176)
    assert obs.candidate_features().shape[::2] == (len(items), 2176)


def test_metrics_take_no_longer_than_they_may(real_world: NavWorld, tasks: Path, tmp_path: Path) -> None:
    """A loose bound: it finds a loop over items, not a busy machine."""
    annotations = tasks / "R2R_val_unseen.json"
    items = load_r2r(annotations)
    path = save_predictions(
        tmp_path / "p.json",
        [{"instr_id": i.instr_id, "trajectory": [[v, 0.0, 0.0] for v in i.path]} for i in items],
    )
    score_r2r(path, annotations, real_world)
    started = time.perf_counter()
    score_r2r(path, annotations, real_world)
    assert time.perf_counter() - started < 2
