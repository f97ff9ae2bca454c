"""What ``fq-toolkit train optimus`` can train: one trainer a task, and how a command line chooses."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from fq_toolkit.training.config import nearest, read_json
from fq_toolkit.training.errors import ConfigError
from fq_toolkit.training.storage.run_folder import RunFolder

# --task -> the module whose train_command(words) trains it. Its trainer is called optimus for the first task
# and optimus-TASK for the others; config.json of its runs and the command line's table have that name.
TASKS = {
    "vae": "fq_toolkit.optimus.tasks.commands_train",
    "label-conditional": "fq_toolkit.optimus.tasks.labels.commands",
    "dialog": "fq_toolkit.optimus.tasks.dialog.commands",
}
DEFAULT = "vae"


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


def task_commands(task: str) -> ModuleType:
    """Return the module of a task's commands."""
    return importlib.import_module(TASKS[task])
