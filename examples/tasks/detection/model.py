"""Drawn shapes with their boxes, and torchvision's FCOS with a small backbone."""

import matplotlib.pyplot as plt
import torch
from torch import nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import box_iou

CLASSES = ["background", "disk", "square", "triangle"]


def drawings(n, size, seed):
    """Draw n images of one to three shapes, which overlap little.

    Returns: a list of (image, target): (3, size, size), and a dict of boxes (k, 4) and labels (k,).
    """
    rng = torch.Generator().manual_seed(seed)
    grid = torch.arange(size) + 0.5
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    found = []
    for _ in range(n):
        background = torch.rand(3, 1, 1, generator=rng)
        image, boxes, labels = background.expand(3, size, size), [], []
        for _ in range(torch.randint(1, 4, (), generator=rng)):
            radius = size * (0.12 + 0.13 * torch.rand((), generator=rng))
            centre = radius + (size - 2 * radius) * torch.rand(2, generator=rng)
            box = torch.cat([centre - radius, centre + radius])
            if boxes and box_iou(box[None], torch.stack(boxes)).max() > 0.1:
                continue
            u, v = (x - centre[0]) / radius, (y - centre[1]) / radius
            disk, square = u.hypot(v), torch.maximum(u.abs(), v.abs())
            triangle = torch.maximum(2 * u.abs() - v, v)  # its tip is at the top
            label = int(torch.randint(1, len(CLASSES), (), generator=rng))
            colour = (background + 0.3 + 0.4 * torch.rand(3, 1, 1, generator=rng)) % 1
            image = torch.where((disk, square, triangle)[label - 1] < 1, colour, image)
            boxes.append(box)
            labels.append(label)
        image = (image + 0.05 * torch.randn(3, size, size, generator=rng)).clamp(0, 1)
        found.append((image, {"boxes": torch.stack(boxes), "labels": torch.tensor(labels)}))
    return found


class Backbone(nn.Sequential):
    """Convolutions that make an image eight times smaller; FCOS reads `out_channels`."""

    def __init__(self, width):
        layers, n_in = [], 3
        for n_out, stride in ((width // 2, 2), (width, 2), (width, 2), (width, 1)):
            layers += [nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(n_out)]
            layers += [nn.ReLU()]
            n_in = n_out
        super().__init__(*layers)
        self.out_channels = width


def detector(size, width=64):
    """Return an FCOS of one level, from random weights."""
    anchors = AnchorGenerator(sizes=((8,),), aspect_ratios=((1.0,),))
    head = FCOSHead(width, num_anchors=1, num_classes=len(CLASSES), num_convs=2)
    return FCOS(Backbone(width), len(CLASSES), size, size, anchor_generator=anchors, head=head)


class MeanPrecision(MeanAveragePrecision):
    """Compute two of torchmetrics' numbers: over IoUs of 0.50 to 0.95, and at 0.50."""

    def compute(self):
        found = super().compute()
        return {name: found[name] for name in ("map", "map_50")}


def collate(samples):
    """Return a batch: the images and the targets."""
    return tuple(zip(*samples, strict=True))


def draw(images, found, n=12):
    """Return a figure of the first images with the boxes that the model is surest of."""
    figure, axes = plt.subplots(2, n // 2, figsize=(1.6 * n / 2, 3.4), layout="constrained")
    for ax, image, objects in zip(axes.flat, images, found, strict=False):
        ax.imshow(image.permute(1, 2, 0).numpy())
        ax.axis("off")
        of_each = (objects[name].tolist() for name in ("boxes", "labels", "scores"))
        for (x0, y0, x1, y1), label, score in zip(*of_each, strict=True):
            if score < 0.4:
                continue
            ax.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="white"))
            text = f"{CLASSES[label]} {score:.2f}"
            ax.text(x0, y0, text, fontsize=6, color="white", bbox={"color": "black", "pad": 1})
    return figure
