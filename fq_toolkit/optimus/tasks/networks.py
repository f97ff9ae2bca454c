"""The sentence VAE that a run starts from: fresh, pretrained, or the model of another run."""

from typing import Any

from fq_toolkit.layers.latent.injection import inject_latent
from fq_toolkit.optimus.data.tokenizer_training import train_tokenizers
from fq_toolkit.optimus.model.building import small_networks
from fq_toolkit.optimus.model.hub import load_pretrained
from fq_toolkit.optimus.model.sentence_vae import SentenceVAE
from fq_toolkit.optimus.tasks.config import SMALL, VAEConfig
from fq_toolkit.training.errors import ConfigError, RunError


def build_vae(config: VAEConfig, sentences: list[str], *, init: str | None = None) -> SentenceVAE:
    """Return the networks of a run at its start.

    Args:
        config: options of any task.
        sentences: what tokenizers that are trained in place learn from.
        init: a run or a saved model to go on from, with its own tokenizers and sizes.

    Raises:
        RunError: when a pretrained network cannot be loaded.
        ConfigError: when the networks have no room for ``max_length`` tokens, no such pooling, or the decoder
            no place for a latent in this mode; or when the model of ``init`` does not fit the options.
    """
    if init is not None:
        return _trained_vae(init, config)
    encoder: Any
    decoder: Any
    if config.encoder == SMALL:
        tokenizers = train_tokenizers(sentences, config.vocab_size, kind=config.tokenizer)
        encoder, decoder = small_networks(
            tokenizers,
            layers=config.layers,
            width=config.width,
            heads=config.heads,
            dropout=config.dropout,
            positions=config.max_length + 1,  # the latent slot takes the decoder's first position
        )
    else:
        encoder, decoder, tokenizers = load_pretrained(config.encoder, config.decoder)
        # Many checkpoints are stored in bfloat16, where small updates round to nothing. --precision decides
        # the arithmetic; the weights stay in float32.
        encoder, decoder = encoder.float(), decoder.float()
    try:
        inject_latent(decoder, config.mode, config.latent_size, init_std=config.init_std)
        return SentenceVAE(
            encoder,
            decoder,
            tokenizers,
            latent_size=config.latent_size,
            pooling=config.pooling,
            max_length=config.max_length,
            init_std=config.init_std,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def describe_tokenizer(config: VAEConfig, vae: SentenceVAE, *, init: str | None = None) -> str:
    """Return how many tokens the decoder knows, and where they are from."""
    count = len(vae.tokenizers.decoder)
    if init is not None:
        return f"{count:,} tokens of {init}"
    if config.encoder != SMALL:
        return f"{count:,} tokens of {config.decoder}"
    return f"{count:,} {'words' if config.tokenizer == 'word' else 'subwords'} trained in place"


def _trained_vae(init: str, config: VAEConfig) -> SentenceVAE:
    """Return the model of another run, whose tokenizers then read the new sentences.

    Raises:
        RunError: when there is no such model, or it is damaged.
        ConfigError: when the options ask for another latent or more tokens than it has.
    """
    try:
        vae = SentenceVAE.from_pretrained(init)
    except ValueError as error:
        raise RunError(f"--init: {error}") from error
    for name, value in (("latent_size", vae.latent_size), ("mode", vae.decoder.latent_spec.mode)):
        if getattr(config, name) != value:
            option = name.replace("_", "-")
            raise ConfigError(
                f"the model of --init {init} has --{option} {value}, and {getattr(config, name)} is "
                f"asked for; pass --{option} {value}"
            )
    if config.max_length > vae.max_length:
        raise ConfigError(
            f"the model of --init {init} reads {vae.max_length} tokens; pass --max-length {vae.max_length}"
        )
    return vae.float().train()
