"""The commands for NDH runs."""

from fq_toolkit.prevalent.tasks.commands import NavigatorCommands
from fq_toolkit.prevalent.tasks.ndh.config import preset
from fq_toolkit.prevalent.tasks.ndh.training import NDH_TRAINER

TRAIN_HELP = """Train an agent on NDH: navigation from dialog history, measured by goal progress.

With no options: dialogs in generated worlds, about a minute on two cores. Start from pretraining with
--pretrained RUN. Real data: --preset cvdn --data FOLDER_OF_NDH_FILES --connectivity FOLDER --features FILE.
The run folder holds predictions in the official submission format."""

_COMMANDS = NavigatorCommands(NDH_TRAINER, preset, TRAIN_HELP)
train_command = _COMMANDS.train
evaluate_command = _COMMANDS.evaluate
navigate_command = _COMMANDS.navigate
plot_command = _COMMANDS.plot
