"""Files of weights: written atomically, and checked against a module when read."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fq_toolkit.prevalent.files import DataError
from fq_toolkit.training.atomic import write_atomic


def write_weights(path: Path, module: nn.Module) -> None:
    """Write the state of a module as safetensors.

    Raises:
        RunError: if it cannot be written.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    write_atomic(path, save(state))


def read_weights(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """Read a file of tensors and check that they are those of a module.

    Raises:
        DataError: if the file is missing or damaged, or holds other tensors.
    """
    try:
        weights = load(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except SafetensorError as error:
        raise DataError(f"{path} is damaged ({error})") from error
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    shapes = {name: tuple(value.shape) for name, value in weights.items()}
    wrong = sorted(name for name in expected.keys() | shapes.keys() if expected.get(name) != shapes.get(name))
    if wrong:
        name = wrong[0]
        raise DataError(
            f"{path} does not fit its config: {name} is {shapes.get(name, 'missing')}, expected "
            f"{expected.get(name, 'none')} ({len(wrong)} tensors differ)"
        )
    return weights
