"""``fq-toolkit score``: the scores of a prediction file."""

import sys
from pathlib import Path
from typing import Literal

from fq_toolkit.prevalent.files import write_json
from fq_toolkit.prevalent.metrics.scoring import score_hanna, score_ndh, score_r2r
from fq_toolkit.prevalent.world.world import NavWorld
from fq_toolkit.training.errors import ConfigError, require


def score_command(arguments: list[str]) -> int:
    """Run ``score PREDICTIONS ANNOTATIONS``.

    Returns:
        The exit status.

    Raises:
        RunError: if a file is unusable.
    """
    tyro = require("tyro", purpose="the command line")

    def score(
        predictions: tyro.conf.Positional[Path],  # type: ignore[name-defined]
        annotations: tyro.conf.Positional[Path],  # type: ignore[name-defined]
        connectivity: Path,
        task: Literal["r2r", "ndh", "hanna"] = "r2r",
        target: Literal["planner", "player", "trusted"] | None = None,
        out: Path | None = None,
    ) -> int:
        """Score a prediction file by the official definitions.

        Args:
            predictions: JSON in the official submission format.
            annotations: JSON file of the split.
            connectivity: Folder of SCAN_connectivity.json files.
            task: Which dataset the annotations belong to.
            target: Only for ndh: which path is the annotated one; trusted by default.
            out: Also write the scores to this JSON file.
        """
        if target is not None and task != "ndh":
            raise ConfigError(f"--target belongs to --task ndh, not to {task}")
        world = NavWorld.from_connectivity(connectivity)
        if task == "ndh":
            scores = score_ndh(predictions, annotations, world, target=target or "trusted")._asdict()
        else:
            scores = (score_r2r if task == "r2r" else score_hanna)(predictions, annotations, world)._asdict()
        sys.stdout.write("".join(f"{name:<8} {value:.4f}\n" for name, value in scores.items()))
        if out is not None:
            write_json(out, scores, indent=2)
        return 0

    return int(tyro.cli(score, args=arguments, prog="fq-toolkit score"))
