"""The training of train.py as a loop in plain torch, from the same weights and scenes, in another order."""

import time

import torch
from model import CLASSES, VOID, UNet, scenes
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics.classification import MulticlassJaccardIndex


def run(seed=42, small=False):
    """Train and measure."""
    torch.manual_seed(seed)
    n, size, n_epochs, bs = (64, 24, 2, 16) if small else (1000, 32, 6, 16)
    images, classes, depths = scenes(n, size, seed)
    valid = scenes(n // 2, size, seed + 1000)
    model = UNet()
    opt = torch.optim.AdamW(model.parameters(), lr=5e-3)
    sched = OneCycleLR(opt, max_lr=5e-3, total_steps=n_epochs * -(-n // bs))
    iou = MulticlassJaccardIndex(len(CLASSES), ignore_index=VOID)

    start_s = time.perf_counter()
    for epoch in range(n_epochs):
        model.train()
        total = 0.0
        for index in torch.randperm(n).split(bs):
            scores, predicted = model(images[index])
            of_classes = F.cross_entropy(scores, classes[index], ignore_index=VOID)
            of_depth = F.l1_loss(predicted, depths[index])
            loss = of_classes + 2 * of_depth
            loss.backward()
            opt.step()
            opt.zero_grad()
            sched.step()
            total += loss.item() * len(index)
        model.eval()
        iou.reset()
        error = 0.0
        with torch.no_grad():
            for x, true_classes, true_depths in zip(*[part.split(50) for part in valid], strict=True):
                scores, predicted = model(x)
                iou.update(scores, true_classes)
                error += F.l1_loss(predicted, true_depths).item() * len(x)
        measured = {"iou": iou.compute().item(), "depth_error": error / len(valid[0])}
        print(epoch, total / n, measured)
    return measured | {"seconds": time.perf_counter() - start_s}


if __name__ == "__main__":
    print(run())
