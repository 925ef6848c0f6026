"""Pretrain a small ResNet of timm on five classes of CIFAR-10, and fine-tune it on the other five.

The images were coded as JPEG once, and each seed pretrains a network of its own. It is fine-tuned in three
ways on 50 images of each class, for as many steps: a linear probe, where `learn.freeze` leaves only the
last layer; GradualUnfreezeCB, which trains the last layer first and then all, with an lr for each layer by
`by_layer`; and LoRA by peft. peft saves only the adapter, without the statistics of BatchNorms, so
`learn.freeze(nn.BatchNorm2d)` keeps those of the pretrained network. Another network that loads the adapter
has to predict the same.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from model import five_classes, network
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from minilearn import BatchSchedulerCB, CheckpointCB, GradualUnfreezeCB, Learner, set_seed
from minilearn.optim import by_layer

SMALL = {"n_epochs": 2}
LRS = {"linear_probe": 1e-2, "unfreezing": 5e-3, "lora": 1.5e-2}


def pretraining(seed, small):
    """Return a learner of the first five classes."""
    set_seed(seed)
    dls = five_classes(0, n=8, n_valid=4, bs=8) if small else five_classes(0, n=5_000, n_valid=500, bs=128)
    return Learner(network(), dls, lr=4e-3, cbs=BatchSchedulerCB(OneCycleLR))


def learner(seed=42, small=False, way="unfreezing", pretrained=""):
    """Return a learner that fine-tunes a network on the other five."""
    set_seed(seed)
    dls = five_classes(5, n=8, n_valid=4, bs=8) if small else five_classes(5, n=50, n_valid=500, bs=32)
    model = network(pretrained)
    model.reset_classifier(5)
    cbs = [BatchSchedulerCB(OneCycleLR)]
    if way == "lora":
        config = LoraConfig(r=16, lora_alpha=32, target_modules=r"layer\d.*conv\d", modules_to_save=["fc"])
        model = get_peft_model(model, config)
    if way == "unfreezing":
        cbs.append(GradualUnfreezeCB({1 if small else 2: None}, lr_div=1.3))
    learn = Learner(model, dls, lr=LRS[way], param_groups=by_layer, cbs=cbs)
    if way == "linear_probe":
        learn.freeze()
    if way == "lora":
        learn.freeze(nn.BatchNorm2d)
    return learn


def run(seed=42, folder=Path("runs/fine_tuning"), small=False):
    """Pretrain, fine-tune in each way, and load the adapter into another network."""
    pretrained = folder / "pretrained.safetensors"
    learn = pretraining(seed, small)
    learn.fit(2, cbs=CheckpointCB(folder / "pretraining", every_minutes=1), resume=True)
    learn.save(pretrained)
    measures = {"pretraining": learn.history[-1]["MulticlassAccuracy"]}
    times_s = {"pretraining": sum(row["time_s"] for row in learn.history)}
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    settings = SMALL if small else {"n_epochs": 6, "epoch_steps": 40}
    for way in LRS:
        learn = learner(seed, small, way, pretrained)
        learn.fit(**settings, cbs=CheckpointCB(folder / way, every_minutes=1), resume=True)
        accuracies = [row["MulticlassAccuracy"] for row in learn.history if row["train"] == "eval"]
        ax.plot(range(1, len(accuracies) + 1), accuracies, marker=".", label=way)
        measures[way] = accuracies[-1]
        times_s[way] = sum(row["time_s"] for row in learn.history)
    ax.set(xlabel="epoch of 40 steps", ylabel="accuracy on the other five classes")
    ax.legend()
    figure.savefig(folder / "picture.png")
    learn.model.save_pretrained(folder / "adapter")
    again = PeftModel.from_pretrained(network(pretrained), folder / "adapter")
    assert torch.equal(Learner(again, None).predict(learn.dls.valid), learn.predict(learn.dls.valid))
    assert (folder / "adapter" / "adapter_model.safetensors").stat().st_size < pretrained.stat().st_size / 4
    return measures | {"seconds": times_s["pretraining"] + times_s["unfreezing"]}


if __name__ == "__main__":
    print(run())
