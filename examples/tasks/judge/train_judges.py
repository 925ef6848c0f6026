"""Train the judges: a small convolutional network on MNIST, and one on Fashion-MNIST.

Each is trained for 6 epochs of one cycle, on the training images and a fifth as many that are none of the ten
classes. Beside the weights, a JSON file has its accuracy on the 10,000 test images and its mean confidence,
the probability of the class that it chooses: on the test images, on three kinds of images that are none of
the classes, and on means of two test images, which it was not trained on.

Run: python examples/tasks/judge/train_judges.py
"""

import json

import torch
import torch.nn.functional as F
from judge import FOLDER, NAMES, images_of, judge, network
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import BatchSchedulerCB, DataLoaders, Learner, TensorLoader, set_seed


def nothings(images):
    """Return images of none of the classes by name: noise, smooth noise, the images in shuffled pieces."""
    n = len(images)
    smooth = F.interpolate(torch.rand(n, 1, 5, 5), (28, 28), mode="bicubic").clamp(0, 1)
    pieces, order = F.unfold(images, 7, stride=7), torch.rand(n, 1, 16).argsort(2)
    pieces = pieces.gather(2, order.expand(-1, 49, -1))
    return {"noise": torch.rand_like(images), "smooth": smooth, "pieces": F.fold(pieces, 28, 7, stride=7)}


def train(name):
    """Train a judge; write its weights, and what it is like."""
    set_seed(42)
    (x, y), (images, targets) = images_of(name)
    others = torch.cat([*nothings(x[:4000]).values()])
    train = torch.cat([x, others]), torch.cat([y, torch.full((len(others),), 10)])
    dls = DataLoaders(TensorLoader(*train, bs=128, shuffle=True), TensorLoader(images, targets, bs=1000))
    learn = Learner(network(), dls, lr=1e-2, cbs=BatchSchedulerCB(OneCycleLR))
    learn.fit(6)
    learn.save(FOLDER / f"{name}.safetensors")
    facts = {"test_accuracy": (judge(name)(images).argmax(1) == targets).float().mean().item()}
    shown = {"test": images, **nothings(images), "means_of_two": (images + images.roll(1, 0)) / 2}
    for kind, part in shown.items():
        facts[f"mean_confidence_{kind}"] = judge(name)(part).amax(1).mean().item()
    facts = {key: round(value, 4) for key, value in facts.items()}
    (FOLDER / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(name, facts)


if __name__ == "__main__":
    for name in NAMES:
        train(name)
