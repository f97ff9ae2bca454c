"""The commands for HANNA runs."""

from fq_toolkit.prevalent.tasks.commands import NavigatorCommands
from fq_toolkit.prevalent.tasks.hanna.config import preset
from fq_toolkit.prevalent.tasks.hanna.training import HANNA_TRAINER

TRAIN_HELP = """Train an agent on HANNA: it finds things, and learns when to ask for help.

With no options: requests in generated worlds, about a minute on two cores. Start from pretraining with
--pretrained RUN. Real data: --preset hanna --data FOLDER_OF_HANNA_FILES --connectivity FOLDER --features FILE
--routes R2R_FILES. The run folder holds predictions in the official submission format."""

_COMMANDS = NavigatorCommands(HANNA_TRAINER, preset, TRAIN_HELP)
train_command = _COMMANDS.train
evaluate_command = _COMMANDS.evaluate
navigate_command = _COMMANDS.navigate
plot_command = _COMMANDS.plot
