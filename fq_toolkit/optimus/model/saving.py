"""A sentence VAE saved to a folder, and loaded from it.

``encoder/`` and ``decoder/`` are ordinary folders of transformers, which the classes of the two networks can
load on their own; so are ``tokenizers/encoder/`` and ``tokenizers/decoder/``. ``posterior.safetensors`` holds
the projection of the sentence vector, and ``vae.json`` the settings.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fq_toolkit.layers.latent.loading import load_latent
from fq_toolkit.optimus.model.batch import Tokenizers
from fq_toolkit.training.atomic import whole_folder
from fq_toolkit.training.errors import RunError

SETTINGS = "vae.json"
WEIGHTS = "posterior.safetensors"
VERSION = 1
_NAMES = {"version", "latent_size", "pooling", "max_length"}


def save_vae(vae: Any, folder: str | Path) -> None:
    """Save a sentence VAE, whole or not at all.

    Args:
        vae: a `SentenceVAE`.
        folder: a new one, an empty one, or one that holds an earlier model, which is replaced.

    Raises:
        ValueError: the folder holds something else, or a network does not save all of its weights, as one
            with adapters does; what was there before is untouched.
        RunError: the folder cannot be written; what was there before is untouched.
    """
    with whole_folder(folder, replaces=SETTINGS) as whole, _named_in_text(whole, keep=True) as part:
        _write(vae, part)
        for role in ("encoder", "decoder"):
            _check_written(getattr(vae, role), part / role, role)


def load_vae(
    kind: Any,
    folder: str | Path,
    *,
    latent_size: int | None = None,
    device: torch.device | str | None = None,
    projector: Any = None,
) -> Any:
    """Load a sentence VAE, in eval mode.

    Args:
        kind: the class, `SentenceVAE` or a subclass.
        folder: what `save_vae` wrote, a run folder with it in ``model/``, or the name of a repository on the
            hub that holds it.
        latent_size: what the caller relies on; another one in the folder is an error.
        device: where to load it; the CPU by default.
        projector: the module that was given to `inject_latent`, if one was.

    Returns:
        The model.

    Raises:
        ValueError: files that are missing, damaged or of a later version, or another latent size.
        RunError: no such folder, and no such repository within reach.
    """
    place = find_model(folder)
    settings = _read_settings(place)
    if latent_size is not None and latent_size != settings["latent_size"]:
        raise ValueError(
            f"{str(place)!r} was saved with latent_size={settings['latent_size']}, and "
            f"latent_size={latent_size} is asked for; load it with its own, or train another model"
        )
    del settings["version"]
    with _without_progress_bars(), _whole_files(place), _named_in_text(place) as files:
        tokenizers = Tokenizers(
            *(_load_tokenizer(files / "tokenizers" / role) for role in Tokenizers._fields)
        )
        decoder, report = load_latent(files / "decoder", projector=projector, output_loading_info=True)
        _check_loaded(report["missing_keys"], place / "decoder")
        encoder = _load_network(files / "encoder", pooling=settings["pooling"])
        weights = load_file(files / WEIGHTS)
    vae = kind(encoder, decoder, tokenizers, **settings)
    problem = _misfit(weights, vae)
    if problem:
        raise ValueError(f"{str(place / WEIGHTS)!r} does not belong to the model beside it: {problem}")
    vae.linear.load_state_dict(weights)
    vae.linear.to(weights["weight"].dtype)  # loading keeps the dtype of the module, not that of the file
    return vae.eval() if device is None else vae.eval().to(device)


def find_model(folder: str | Path) -> Path:
    """Return the folder with the files of a sentence VAE: this one, its ``model/``, or a download.

    Raises:
        ValueError: a folder without such files.
        RunError: no folder, and the hub has no such repository or cannot be reached.
    """
    path = Path(folder)
    for place in (path, path / "model"):
        if (place / SETTINGS).is_file():
            return place
    if path.is_dir():
        raise ValueError(
            f"{str(folder)!r} holds no sentence VAE: neither it nor its folder model has a {SETTINGS}"
        )
    return _download(str(folder))


def _download(name: str) -> Path:
    """Download a repository from the hub; return its local folder."""
    from huggingface_hub import snapshot_download

    try:
        place = Path(snapshot_download(name))
    except Exception as error:  # a bad name, no network, no such repository, no permission
        raise RunError(
            f"there is no folder {name!r}, and no sentence VAE of that name could be had from the hub "
            f"({type(error).__name__}); give the folder of a run or of a saved model"
        ) from error
    if not (place / SETTINGS).is_file():
        raise ValueError(f"the repository {name!r} holds no sentence VAE: it has no {SETTINGS}")
    return place


def _write(vae: Any, folder: Path) -> None:
    """Write all files of a model into an empty folder."""
    vae.encoder.save_pretrained(folder / "encoder")
    vae.decoder.save_pretrained(folder / "decoder")
    for role, tokenizer in vae.tokenizers._asdict().items():
        tokenizer.save_pretrained(folder / "tokenizers" / role)
    weights = {name: value.detach().cpu().contiguous() for name, value in vae.linear.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    # Last: a folder counts as a saved model when this file is there.
    settings = {
        "version": VERSION,
        "latent_size": vae.latent_size,
        "pooling": vae.pooling,
        "max_length": vae.max_length,
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _check_written(network: Any, folder: Path, role: str) -> None:
    """Refuse a network that did not save all of its weights: it could not be loaded again.

    With adapters inside, ``save_pretrained`` silently writes only the adapters.
    """
    saved: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as content:
            saved |= set(content.keys())
    state = network.state_dict()
    # Tied weights are saved under one of their names: compare the memory, not the names.
    places = {state[name].data_ptr() for name in saved & set(state)}
    lost = [name for name, value in state.items() if name not in saved and value.data_ptr() not in places]
    if lost or not (folder / "config.json").is_file():
        adapters = any("lora" in name.lower() or "adapter" in name.lower() for name in lost)
        hint = (
            "merge its adapters first (PEFT: merge_and_unload())" if adapters
            else f"see what {type(network).__name__}.save_pretrained writes"
        )  # fmt: skip
        raise ValueError(
            f"the {role} saved {len(saved)} tensors and not {', '.join(lost[:3]) or 'its config.json'} "
            f"({len(lost)} in all), so that it could not be loaded again; {hint}. Nothing was replaced"
        )


def _read_settings(place: Path) -> dict[str, Any]:
    """Read ``vae.json`` and check it."""
    file = place / SETTINGS
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is damaged: {error}") from error
    version = settings.get("version") if isinstance(settings, dict) else None
    if version != VERSION:
        raise ValueError(
            f"{str(file)!r} has version {version!r}, and this fq-toolkit reads version {VERSION}; "
            "use the fq-toolkit that wrote it"
        )
    if set(settings) != _NAMES:
        odd = sorted(set(settings) ^ _NAMES)
        raise ValueError(f"{str(file)!r} is damaged: these settings are missing or unknown: {', '.join(odd)}")
    return settings


def _load_network(folder: Path, *, pooling: str) -> Any:
    """Load a network by the class that saved it: AutoModel would turn a T5 encoder into a whole T5."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    name = (config.architectures or [""])[0]
    kind = getattr(transformers, name, None)
    if kind is None:
        raise ValueError(f"transformers has no class {name!r}, which the network in {str(folder)!r} is of")
    network, report = kind.from_pretrained(folder, config=config, output_loading_info=True)
    missing = set(report["missing_keys"])
    if pooling != "pooler" and any("pooler." in key for key in missing):
        network.pooler = None  # it was saved without one, and transformers adds one with random weights
        missing = {key for key in missing if "pooler." not in key}
    _check_loaded(missing, folder)
    return network


def _check_loaded(lacking: Iterable[str], folder: Path) -> None:
    """Refuse files that lack weights, which transformers would initialize at random."""
    if missing := sorted(lacking):
        raise ValueError(
            f"the weights in {str(folder)!r} lack {', '.join(missing[:4])}, which would be random"
        )


@contextmanager
def _whole_files(place: Path) -> Iterator[None]:
    """Name the model in errors about its files, which transformers and safetensors do not."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"a file of the model in {str(place)!r} is missing or damaged: {reason}") from error


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Hide the progress bars of transformers, which small files do not need."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@contextmanager
def _named_in_text(folder: Path, *, keep: bool = False) -> Iterator[Path]:
    """Yield a path to a folder that is valid UTF-8, as safetensors needs; a path may hold any bytes.

    Args:
        folder: to be read or, with ``keep``, written.
        keep: whether to copy back what the block leaves.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as temporary:
            place = Path(temporary) / "model"
            shutil.copytree(folder, place)
            yield place
            if keep:
                shutil.copytree(place, folder, dirs_exist_ok=True)
    else:
        yield folder


def _misfit(weights: dict[str, torch.Tensor], vae: Any) -> str | None:
    """Return what is wrong with the weights of the projection, or None."""
    if set(weights) != {"weight"}:
        return f"it holds {sorted(weights)}"
    shape, wanted = tuple(weights["weight"].shape), tuple(vae.linear.weight.shape)
    return None if shape == wanted else f"its weight is {shape}, and {wanted} is needed"
