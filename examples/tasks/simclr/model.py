"""The views of an image, the encoder with its projection, and the loss that brings two views together."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minilearn import DataLoaders, ResNet, cifar10
from minilearn.data.augment import Augment, HorizontalFlip, RandomResizedCrop
from minilearn.data.images import ImageLoader


class ColorJitter(Augment):
    """Change contrast, brightness and saturation of normalized images; make a fifth of them grey."""

    n_random = 4

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        """See Augment."""
        contrast, brightness, saturation, is_grey = random[:, :, None, None, None].unbind(1)
        images = images * (0.5 + contrast) + (brightness - 0.5)
        grey = images.mean(1, keepdim=True)
        return grey + (images - grey) * torch.where(is_grey < 0.2, 0.0, 2 * saturation)


class TwoViews(Augment):
    """Augment each image twice: (N, C, H, W) -> (N, 2, C, H, W)."""

    def __init__(self, *augment: Augment) -> None:
        self.augment = augment
        self.sizes = [one.n_random for one in augment]
        self.n_random = 2 * sum(self.sizes)

    def __call__(self, images: Tensor, random: Tensor) -> Tensor:
        """See Augment."""
        views = []
        for half in random.chunk(2, dim=1):
            view = images
            for one, part in zip(self.augment, half.split(self.sizes, dim=1), strict=True):
                view = one(view, part)
            views.append(view)
        return torch.stack(views, dim=1)


TWO_VIEWS = TwoViews(RandomResizedCrop(scale=(0.2, 1)), HorizontalFlip(), ColorJitter())


def every(n: int, bs: int, *augment: Augment) -> DataLoaders:
    """Return loaders of every n-th image of CIFAR-10, whose archive has one class after another."""
    dls = cifar10(bs, augment=augment)
    train, valid = ([t[::n] for t in dl.tensors] for dl in (dls.train, dls.valid))
    normalized = dls.valid.augment
    return DataLoaders(
        ImageLoader(*train, [*normalized, *augment], bs=bs, shuffle=True),
        ImageLoader(*valid, [*normalized, *augment], bs=bs),
        classes=dls.classes,
        source=dls.source,
    )


class SimCLR(nn.Module):
    """Encode and project two views of each image: (N, 2, 3, H, W) -> (N, 2, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ResNet((1, 1, 1), (32, 64, 128), stem_stride=2)
        self.encoder.head[-1] = nn.Identity()
        self.projection = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64))

    def forward(self, views: Tensor) -> Tensor:
        """Return the projections."""
        return self.projection(self.encoder(views.flatten(0, 1))).unflatten(0, views.shape[:2])


def nt_xent(projections: Tensor, target: None = None, temperature: float = 0.5) -> Tensor:
    """Return the cross-entropy of picking the other view of an image among all other views of the batch.

    Source: Chen et al. 2020, equation 1.
    """
    z = F.normalize(projections.flatten(0, 1), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    other = torch.arange(len(z), device=z.device) ^ 1  # 1, 0, 3, 2, ...
    return F.cross_entropy(similarity, other)
