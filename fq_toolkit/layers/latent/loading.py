"""Loading of models that were saved with a latent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from fq_toolkit.layers.latent.injection import injected_class
from fq_toolkit.layers.latent.model import LatentModel
from fq_toolkit.layers.latent.projector import CHILD
from fq_toolkit.layers.latent.spec import CONFIG_KEY, LatentSpec


def load_latent(folder: str | Path, *, projector: nn.Module | None = None, **options: Any) -> Any:
    """Load a model that was saved with a latent in it.

    The folder is an ordinary one of transformers: the base model's class loads it too, without the latent.

    Args:
        folder: what ``model.save_pretrained`` wrote, or the name of a repository on the hub.
        projector: the module that was given to `inject_latent`, where one was.
        **options: as in the model's own ``from_pretrained``: dtype, device_map, revision ...

    Returns:
        The injected model, in eval mode.

    Raises:
        ValueError: nothing was injected into the saved model, its projector is missing, or weights are.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel
        >>> from fq_toolkit import inject_latent, load_latent
        >>> config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=40)
        >>> model = inject_latent(GPT2LMHeadModel(config)).eval()
        >>> ids, z = torch.randint(0, 40, (1, 4)), torch.randn(1, 32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_pretrained(folder)
        ...     same = load_latent(folder)
        >>> bool(torch.allclose(same(ids, latent=z).logits, model(ids, latent=z).logits))
        True
    """
    import transformers  # lazy: only injection needs it

    # Options that a config on the hub is found by; the others are the model's.
    shared = ("revision", "token", "cache_dir", "local_files_only", "force_download", "proxies", "subfolder")
    config = options.pop("config", None)
    if (Path(folder) / "adapter_config.json").is_file() and not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"{str(folder)!r} holds only an adapter; load the folder of the injected model that it was made "
            f"for, and then the adapter: load_latent(base).load_adapter({str(folder)!r})"
        )
    if config is None:
        hub = {key: options[key] for key in shared if key in options}
        config = transformers.AutoConfig.from_pretrained(folder, **hub)
    saved = getattr(config, CONFIG_KEY, None)
    if saved is None:
        raise ValueError(
            f"no latent was injected into the model in {str(folder)!r}: its config has no {CONFIG_KEY!r}; "
            "load it as usual and call inject_latent"
        )
    if (LatentSpec.from_dict(saved).projector == "custom") != (projector is not None):
        wanted = "the projector that was given to inject_latent" if projector is None else "no projector"
        raise ValueError(f"the model in {str(folder)!r} was saved with {wanted}; load it with the same")
    name = (config.architectures or [type(config).__name__])[0]
    base = getattr(transformers, name, None) or _own_class(name, type(config))
    if base is None:
        raise ValueError(
            f"transformers has no class {name!r}, which the model in {str(folder)!r} is of; if it is a class "
            "of your own, import it before loading"
        )
    if projector is not None:
        options["latent_projector"] = projector
    asked = options.pop("output_loading_info", False)
    model, info = injected_class(base).from_pretrained(
        folder, config=config, output_loading_info=True, **options
    )
    # transformers warns of missing weights and draws them at random; here they are what the model was
    # loaded for.
    missing = sorted(key for key in info["missing_keys"] if key.startswith(CHILD + "."))
    if missing:
        raise ValueError(f"the weights in {str(folder)!r} lack {', '.join(missing)}, which would be random")
    return (model, info) if asked else model


def _own_class(name: str, config: type) -> Any:
    """Return an imported model class of the user's own by its name and its config, or None."""
    from transformers import PreTrainedModel  # lazy: only injection needs it

    waiting: list[Any] = [PreTrainedModel]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__name__ == name and kind.config_class is config and not issubclass(kind, LatentModel):
            return kind
    return None
