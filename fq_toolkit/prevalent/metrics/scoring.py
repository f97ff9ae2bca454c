"""Scores of prediction files by the official definitions of R2R, NDH and HANNA."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fq_toolkit.prevalent.data.annotations import PathType, load_hanna, load_ndh, load_planner_goals, load_r2r
from fq_toolkit.prevalent.data.predictions import load_predictions
from fq_toolkit.prevalent.files import DataError, field
from fq_toolkit.prevalent.metrics.path_metrics import PathMetrics, measure_paths
from fq_toolkit.prevalent.world.items import NavItem
from fq_toolkit.prevalent.world.world import NavWorld


class R2RScores(NamedTuple):
    """Means over all instructions; TL, NE and OE in metres, the rest in [0, 1]. See `PathMetrics`."""

    TL: float
    NE: float
    OE: float
    SR: float
    OSR: float
    SPL: float
    CLS: float
    nDTW: float
    SDTW: float


class NDHScores(NamedTuple):
    """Means over all dialogs, as in R2R, with progress in place of fidelity.

    GP: goal progress, the metres by which the agent came closer to the nearest end viewpoint.
    OPSR: share of agents that came within 3 m of the end of the planner's path.
    """

    TL: float
    NE: float
    OE: float
    SR: float
    OSR: float
    SPL: float
    GP: float
    OPSR: float


class HannaScores(NamedTuple):
    """Means over all tasks, as in R2R, with success at 2 m or closer.

    requests: requests for help per task; NaN if the predictions do not record them.
    """

    TL: float
    NE: float
    OE: float
    SR: float
    OSR: float
    SPL: float
    requests: float


def _measure(
    items: Sequence[NavItem],
    records: Sequence[dict[str, Any]],
    world: NavWorld,
    annotations: Path | str,
    predictions: Path | str,
    **options: Any,
) -> PathMetrics:
    """Measure the trajectories, or raise DataError without items or for an item without a goal."""
    if not items:
        raise DataError(f"{annotations}: no instruction")
    for item in items:
        if not item.goals:  # the test split: every figure would be made up
            raise DataError(
                f"{annotations}: item {item.instr_id!r} holds only the start: this split keeps its goals "
                "secret and is scored by the challenge server"
            )
    return measure_paths(
        world,
        [item.scan for item in items],
        [record["path"] for record in records],
        [item.path for item in items],
        [item.goals for item in items],
        names=[f"{predictions}: {item.instr_id!r}" for item in items],
        **options,
    )


def _shared_means(metrics: PathMetrics) -> dict[str, float]:
    """Return the means that all three datasets report."""
    return {name: float(getattr(metrics, name).mean()) for name in ("TL", "NE", "OE", "SR", "OSR", "SPL")}


def score_r2r(predictions: str | Path, annotations: str | Path, world: NavWorld) -> R2RScores:
    """Score an R2R prediction file.

    Args:
        predictions: JSON ``[{instr_id, trajectory: [[viewpoint, heading, elevation], ...]}, ...]`` with ids
            ``"<path_id>_<i>"``.
        annotations: the R2R file of the split.
        world: the graphs.

    Returns:
        TL, NE, OE, SR (NE < 3 m), OSR, SPL, CLS, nDTW, SDTW.

    Raises:
        DataError: for damaged files, missing, duplicate or unknown ids, a wrong start, or a hop over a
            non-edge; the file and the item are named.

    Example:
        >>> import tempfile
        >>> from fq_toolkit.prevalent import BatchedNavEnv, MiniWorld, save_predictions
        >>> world = MiniWorld(0)
        >>> folder = Path(tempfile.mkdtemp())
        >>> annotations = world.write(folder, 5, instructions=1)
        >>> env = BatchedNavEnv(world)
        >>> obs = env.reset(world.items(5))
        >>> while not obs.ended.all():
        ...     obs, _, _ = env.step(obs.teacher)
        >>> file = save_predictions(folder / "predictions.json", env.trajectories())
        >>> score_r2r(file, annotations, world).SPL
        1.0
    """
    predictions, annotations = Path(predictions), Path(annotations)
    items = load_r2r(annotations)  # one item per instruction: each of a path's three counts
    metrics = _measure(items, load_predictions(predictions, items), world, annotations, predictions)
    return R2RScores(*(float(values.mean()) for values in metrics))


def score_ndh(
    predictions: str | Path, annotations: str | Path, world: NavWorld, *, target: PathType = "trusted"
) -> NDHScores:
    """Score an NDH prediction file.

    Args:
        predictions: JSON ``[{inst_idx, trajectory}]``.
        annotations: the NDH file of the split.
        world: the graphs.
        target: which path is the annotated one: ``"planner"``, ``"player"`` or ``"trusted"``.

    Returns:
        TL, NE, OE, SR, OSR, SPL, GP and OPSR.

    Raises:
        DataError: as `score_r2r`.
        ValueError: for an unknown target.

    Source: the NDH task of CVDN, arXiv 1907.04957.
    """
    predictions, annotations = Path(predictions), Path(annotations)
    items = load_ndh(annotations, target=target)
    records = load_predictions(predictions, items)
    planner = load_planner_goals(annotations)  # OPSR is about the planner's goal, whatever the target
    return ndh_scores(items, records, world, planner, annotations=annotations, predictions=predictions)


def ndh_scores(
    items: Sequence[NavItem],
    records: Sequence[dict[str, Any]],
    world: NavWorld,
    planner: Mapping[str, str],
    *,
    annotations: Path | str = "items",
    predictions: Path | str = "predictions",
) -> NDHScores:
    """Score trajectories of NDH items in memory.

    With ``E`` the end viewpoints of an item, goal progress is the distance covered towards them::

        GP = min over e in E of d(first viewpoint, e) - min over e in E of d(last viewpoint, e)

    Args:
        items: items as `load_ndh` returns them.
        records: one record for each item, with its viewpoints as ``"path"``.
        world: the graphs.
        planner: ``inst_idx`` -> end of the planner's path.
        annotations: file or name, for messages.
        predictions: file or name, for messages.

    Raises:
        DataError: as `score_r2r`.

    Source: goal progress of CVDN, arXiv 1907.04957.
    """
    metrics = _measure(items, records, world, annotations, predictions)
    progress, passed = np.zeros((2, len(items)))
    for row, (item, record) in enumerate(zip(items, records, strict=True)):
        scan = world.scan(item.scan)
        regions = [scan.locate(viewpoint) for viewpoint in item.regions]
        path = [scan.locate(viewpoint) for viewpoint in record["path"]]  # exists: it was measured above
        remaining = scan.distances[:, regions].min(axis=1)
        # inf - inf would be NaN and spoil the mean of the whole split without a word.
        if not np.isfinite(remaining[path[0]]):
            raise DataError(
                f"{annotations}: item {item.instr_id!r}: unreachable goal: no path in scan {item.scan!r} "
                f"from {item.start!r} to any of end_panos"
            )
        progress[row] = remaining[path[0]] - remaining[path[-1]]  # negative for an agent that went away
        passed[row] = scan.distances[path, scan.locate(planner[item.instr_id])].min() < 3.0
    return NDHScores(**_shared_means(metrics), GP=float(progress.mean()), OPSR=float(passed.mean()))


def score_hanna(predictions: str | Path, annotations: str | Path, world: NavWorld) -> HannaScores:
    """Score a HANNA prediction file.

    The goal is the end of the annotated path that is nearest to where the agent stopped.

    Args:
        predictions: JSON ``[{instr_id, trajectory or agent_pose, agent_ask}]``; ``agent_ask`` holds 1 for
            each step at which the agent asked for help and may be absent.
        annotations: the HANNA file of the split.
        world: the graphs.

    Returns:
        TL, NE, OE, SR (NE <= 2 m), OSR, SPL and requests per task.

    Raises:
        DataError: as `score_r2r`.

    Source: arXiv 1909.01871.
    """
    predictions, annotations = Path(predictions), Path(annotations)
    items = load_hanna(annotations)
    records = load_predictions(predictions, items)
    return hanna_scores(items, records, world, annotations=annotations, predictions=predictions)


def hanna_scores(
    items: Sequence[NavItem],
    records: Sequence[dict[str, Any]],
    world: NavWorld,
    *,
    annotations: Path | str = "items",
    predictions: Path | str = "predictions",
) -> HannaScores:
    """Score trajectories of HANNA items in memory.

    Args:
        items: items as `load_hanna` returns them.
        records: one record for each item, with its viewpoints as ``"path"`` and optionally ``"agent_ask"``.
        world: the graphs.
        annotations: file or name, for messages.
        predictions: file or name, for messages.

    Raises:
        DataError: as `score_r2r`.
    """
    metrics = _measure(items, records, world, annotations, predictions, success_radius=2.0, inclusive=True)
    requests = [
        field(record, "agent_ask", list, f"{predictions}: {item.instr_id!r}").count(1)
        for item, record in zip(items, records, strict=True)
        if "agent_ask" in record
    ]
    # A mean over only those that say so would look like one over all.
    asked = float(np.mean(requests)) if len(requests) == len(items) else float("nan")
    return HannaScores(**_shared_means(metrics), requests=asked)
