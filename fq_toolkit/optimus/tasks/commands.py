"""Which task ``train optimus`` trains, and the commands of its runs."""

from collections.abc import Sequence
from pathlib import Path

from fq_toolkit.optimus.tasks.classification.commands import classify_command, plot_latents_command
from fq_toolkit.optimus.tasks.dialog import commands as dialog
from fq_toolkit.optimus.tasks.labels import commands as labels
from fq_toolkit.optimus.tasks.vae import commands as vae
from fq_toolkit.optimus.tasks.vae.commands import evaluate_command, plot_command, sample_command
from fq_toolkit.optimus.tasks.vae.latent_commands import (
    analogy_command,
    interpolate_command,
    play_command,
    reconstruct_command,
)
from fq_toolkit.training.config import nearest, read_json
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.storage.run_folder import RunFolder

__all__ = [
    "analogy_command",
    "classify_command",
    "evaluate_command",
    "interpolate_command",
    "play_command",
    "plot_command",
    "plot_latents_command",
    "reconstruct_command",
    "sample_command",
    "train_command",
]

# --task -> its commands. Its trainer is called optimus for the first task and optimus-TASK for the others;
# config.json of its runs and the command line's table have that name.
TASKS = {"vae": vae, "label-conditional": labels, "dialog": dialog}
DEFAULT = "vae"


def train_command(arguments: list[str]) -> int:
    """Run ``train optimus [--task TASK]``.

    Returns:
        The exit status of the task's own command.
    """
    task, rest = split_task(arguments)
    return TASKS[task].train_command(rest)


def trainer_name(task: str) -> str:
    """Return the name of a task's trainer.

    Example:
        >>> trainer_name("vae"), trainer_name("dialog")
        ('optimus', 'optimus-dialog')
    """
    return "optimus" if task == DEFAULT else f"optimus-{task}"


def split_task(words: Sequence[str]) -> tuple[str, list[str]]:
    """Take ``--task`` out of a command line; a resumed run knows its task itself.

    Args:
        words: after ``train optimus``.

    Returns:
        The task, and the words without it.

    Raises:
        ConfigError: for an unknown task, a ``--task`` without a value, or one that is not the resumed run's.
    """
    asked, resumed, rest = "", "", []
    left = iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        if name == "--task":
            asked = value if equals else next(left, "")
            if asked not in TASKS:
                raise ConfigError(f"--task is {asked!r}; {nearest(asked, list(TASKS))}")
            continue
        rest.append(word)
        if name == "--resume":
            following = [] if equals else [word for _, word in zip(range(1), left, strict=False)]
            rest += following
            resumed = value if equals else "".join(following)
    if resumed:
        trainer, _ = read_json(RunFolder.open(Path(resumed)).config)
        made_by = next((task for task in TASKS if trainer_name(task) == trainer), None)
        if made_by is not None:
            if asked not in ("", made_by):
                raise ConfigError(f"--task is {asked!r}, and {resumed} is a run of the task {made_by!r}")
            return made_by, rest
    return asked or DEFAULT, rest
