"""Networks that turn images into features: classifiers trained in place, and one with random weights."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional


class Extracted(NamedTuple):
    """Features (n, dim) of images, and logits (n, classes) if the extractor has classes."""

    features: Tensor
    logits: Tensor | None


class DigitsCNN(nn.Module):
    """conv 32 - conv 64 /2 - conv 64 /2 - linear 64 - linear 10, for 16x16 digits.

    The features are the last convolution's map, pooled to 2x2. The classifier's own last layer keeps little
    but the class; the map still sees how a digit is written, so whether samples vary as real ones do.
    """

    name = "digits-cnn"
    dim = 256

    def __init__(self) -> None:
        super().__init__()
        self.holdout_accuracy = 0.0
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        )
        self.head = nn.Sequential(
            nn.Flatten(), nn.Dropout(0.3), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, images: Tensor) -> Extracted:
        """Look at images (n, 1, 16, 16) in [-1, 1]."""
        maps = self.body(images)
        return Extracted(functional.avg_pool2d(maps, 2).flatten(1), self.head(maps))


class ImageCNN(nn.Module):
    """conv 32 - conv 64 /2 - conv 128 /2, then conv 128 /2 down to 4x4 - linear, for any size.

    Features are the last map pooled to 2x2, for the reason that `DigitsCNN` gives.

    Args:
        name: that its figures carry.
        channels: channels of the images.
        size: their height and width, at least 8.
        num_classes: classes; 0 for a network without any, which is not trained.
    """

    dim = 512

    def __init__(self, name: str, *, channels: int, size: int, num_classes: int) -> None:
        super().__init__()
        self.name = name
        self.holdout_accuracy: float | None = 0.0
        widths, side, inputs, stage = (32, 64, 128), size, channels, 0
        layers: list[nn.Module] = []
        while stage < len(widths) or side >= 8:  # three convolutions at least, and down to less than 8 pixels
            outputs = widths[min(stage, len(widths) - 1)]
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            if side >= 8:
                layers.append(nn.AvgPool2d(2))
                side //= 2
            inputs, stage = outputs, stage + 1
        self.body = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(self.dim, num_classes)) if num_classes else None

    def forward(self, images: Tensor) -> Extracted:
        """Look at images (n, channels, size, size) in [-1, 1]."""
        features = functional.adaptive_avg_pool2d(self.body(images), 2).flatten(1)
        return Extracted(features, None if self.head is None else self.head(features))


def random_cnn(*, channels: int, size: int) -> ImageCNN:
    """Return a feature extractor for images without labels: a network with fixed random weights.

    It sees edges, colours and their arrangement and knows nothing of objects. Uses the global random state.
    """
    model = ImageCNN("random-cnn", channels=channels, size=size, num_classes=0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            # Keeps the variance through ReLUs; biases make features other than linear in the images.
            nn.init.orthogonal_(module.weight, gain=2**0.5)
            nn.init.normal_(module.bias, std=0.1)  # type: ignore[arg-type]
    return model.eval().requires_grad_(False)
