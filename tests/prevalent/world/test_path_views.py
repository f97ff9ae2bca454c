"""Views along annotated paths: those of the environment, under one mask."""

import pytest
import torch

from fq_toolkit.prevalent import BatchedNavEnv, DataError, MiniWorld
from fq_toolkit.prevalent.world.environment_dropout import draw_feature_mask, mask_features
from fq_toolkit.prevalent.world.path_views import observe_paths, path_actions


@pytest.fixture(scope="module")
def env(mini: MiniWorld) -> BatchedNavEnv:
    return BatchedNavEnv(mini, mini.features(), device="cpu")


def test_the_actions_of_a_path_walk_it(mini: MiniWorld, env: BatchedNavEnv) -> None:
    items = mini.items(6)
    rows = [path_actions(mini, item) for item in items]
    longest = max(map(len, rows))
    env.reset(items)
    for column in torch.tensor([row + [0] * (longest - len(row)) for row in rows]).T:
        env.step(column)
    walked = [tuple(pose[0] for pose in record["trajectory"]) for record in env.trajectories()]
    assert walked == [item.path for item in items]


def test_a_path_over_a_non_edge_names_item_and_viewpoints(mini: MiniWorld, env: BatchedNavEnv) -> None:
    item = mini.items(1)[0]
    broken = item._replace(instr_id="7_2", path=(item.path[0], item.path[3]))
    with pytest.raises(DataError, match=rf"item '7_2'.*no edge from '{item.path[0]}' to '{item.path[3]}'"):
        observe_paths(env, [broken])


def test_what_is_seen_is_what_the_environment_shows(mini: MiniWorld, env: BatchedNavEnv) -> None:
    items = mini.items(5, seed=4)
    paths = observe_paths(env, items)
    assert paths.mask.sum(dim=1).tolist() == [len(item.path) for item in items]
    observation = env.reset(items)
    first = torch.tensor([path_actions(mini, item)[0] for item in items])
    rows = torch.arange(len(items))
    torch.testing.assert_close(paths.views[:, 0], observation.view_features(), rtol=0, atol=0)
    torch.testing.assert_close(
        paths.chosen[:, 0], observation.candidate_features()[rows, first], rtol=0, atol=0
    )
    for row, item in enumerate(items):
        assert paths.chosen[row, : len(item.path) - 1].abs().sum(dim=1).min() > 0
        assert not paths.chosen[row, len(item.path) - 1 :].any()


def test_one_mask_covers_views_and_moves_and_leaves_angles(mini: MiniWorld, env: BatchedNavEnv) -> None:
    mask = draw_feature_mask(64, 0.5, generator=torch.Generator().manual_seed(1))
    plain, masked = observe_paths(env, mini.items(3)), observe_paths(env, mini.items(3), feature_mask=mask)
    torch.testing.assert_close(masked.views, mask_features(plain.views, mask))
    torch.testing.assert_close(masked.chosen, mask_features(plain.chosen, mask))
    assert not masked.views[..., :64][..., mask == 0].any()
    torch.testing.assert_close(masked.views[..., 64:], plain.views[..., 64:], rtol=0, atol=0)


def test_an_environment_of_arrays_is_refused(mini: MiniWorld) -> None:
    with pytest.raises(ValueError, match="device="):
        observe_paths(BatchedNavEnv(mini, mini.features()), mini.items(1))
