"""Adding quantizers to somebody else's network."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from fq_toolkit.layers.insertion.handle import CHILD, QuantizationHandle, quantize_output
from fq_toolkit.layers.insertion.places import choose_names, plan
from fq_toolkit.layers.insertion.probe import probe
from fq_toolkit.layers.insertion.trial import needs_hook
from fq_toolkit.layers.quantizer.feature_quantizer import FeatureQuantizer
from fq_toolkit.layers.quantizer.updates import CoalescedUpdates, coalesce_updates

logger = logging.getLogger("fq_toolkit")


def quantize_discriminator(
    model: nn.Module,
    *,
    layers: Iterable[str] | str,
    num_codes: int | Mapping[str, int],
    example_inputs: Any,
    **options: Any,
) -> QuantizationHandle:
    """Quantize the outputs of named modules of an existing network, in place.

    Each module gets a `FeatureQuantizer` as a child named ``feature_quantizer``, and a hook that sends the
    module's output through it.  (Not so an `nn.Sequential`, which runs its last child anyway.)  Between ranks
    all layers of the network are updated by one all_reduce at the end of its forward.

    Args:
        model: the network, a discriminator for example.
        layers: names as in ``model.named_modules()``, or "auto": the last block at each resolution of the
            feature maps that is smaller than the input, but for what becomes the network's own output.
        num_codes: K for all, or by name.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments for one probe
            forward. It runs in eval mode without grad and leaves buffers and random numbers as they were.
        **options: settings of every `FeatureQuantizer`.  ``channel_dim`` is one axis for all, or axes by
            name; by default the axis is that of the operation that made the features: 1 behind convolutions
            and their norms, the last behind linear layers and layer norms, followed through permutations and
            views.  With ``codebook_dim`` the quantizers bring projections, which an optimizer that was built
            before does not know: give it ``handle.parameters()``.

    Returns:
        A handle: ``print(handle)`` shows name, shape and K, ``handle.parameters()`` are new parameters, and
        ``handle.remove()`` restores the network.

    Raises:
        ValueError: an unknown name (near ones are listed), a module that is quantized already, that did not
            run in the probe, has no features as output or features whose channel axis nothing tells, or that
            runs its children in a way that a quantizer cannot join; nothing is changed then.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fq_toolkit import quantize_discriminator
        >>> D = nn.Sequential(nn.Conv2d(3, 8, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 1))
        >>> handle = quantize_discriminator(
        ...     D, layers=["1"], num_codes=16, example_inputs=torch.zeros(2, 3, 16, 16))
        >>> print(handle)
        layer          shape  dim   K
        -----  -------------  ---  --
        1      2 x 8 x 8 x 8    8  16
        >>> handle.remove()
    """
    # 1. What there is: shapes, channel axes and the network's own output.
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    probed = probe(model, modules, example_inputs)

    # 2. What will be. Whatever can be wrong is found before the network is changed.
    names = choose_names(layers, modules, probed, example_inputs)
    planned = plan(names, modules, probed, num_codes, options.pop("channel_dim", None))
    quantizers = [
        FeatureQuantizer(
            layer.dim,
            layer.num_codes,
            device=probed[layer.name].device,
            # From the back, as the number of positions may vary; axis 1 is that of maps of any rank.
            channel_dim=axis if axis == 1 else axis - len(layer.shape),
            **options,
        )
        for layer, axis in planned
    ]
    by_hook = needs_hook(model, {name: modules[name] for name in names}, example_inputs)

    # 3. The change.
    hooks: list[RemovableHandle | CoalescedUpdates] = []
    for (layer, _), quantizer in zip(planned, quantizers, strict=True):
        module, result = modules[layer.name], probed[layer.name]
        if result.device is not None and not torch.is_autocast_enabled(result.device.type):
            quantizer.to(result.dtype)  # its projections; the dictionary stays float32
        quantizer.train(module.training)
        module.add_module(CHILD, quantizer)
        if by_hook[layer.name]:
            hooks.append(module.register_forward_hook(quantize_output))
    hooks.append(coalesce_updates(model))
    handle = QuantizationHandle(model, [layer for layer, _ in planned], hooks)
    logger.info("quantized %d layer(s):\n%s", len(planned), handle)
    return handle
