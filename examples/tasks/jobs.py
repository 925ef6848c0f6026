"""The jobs of this folder, and the bar of each, stated before it was run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Measures = dict[str, Any]  # what `run` of a job's train.py returns, or of its by_hand.py


@dataclass(frozen=True)
class Job:
    """A job: its title and its bar.

    Args:
        bar: what has to be reached, in words.
        reached: (measures, measures of the loop by hand, or {}) -> whether one run reaches it;
            None: there is no bar, and whatever comes out is shown.
        shown: the measures in the table.
        beside: whether each seed is trained by hand too, because the bar needs it; else only the first,
            for the time.
    """

    title: str
    bar: str
    reached: Callable[[Measures, Measures], bool] | None
    shown: tuple[str, ...]
    beside: bool = False


def near(name: str) -> Callable[[Measures, Measures], bool]:
    """Return a bar: a measure, the lower the better, is within 1 % of that of the loop by hand."""
    return lambda ours, hand: ours[name] <= 1.01 * hand[name]


def recognised(who: str, ours: Measures) -> bool:
    """Return whether the judge is 80 % sure of the samples, on average, and sees all ten classes."""
    return bool(ours[f"{who}_confidence"] >= 0.8 and ours[f"{who}_classes"] == 10)


JOBS = {
    "char_gpt": Job(
        "a GPT of characters: warm-up and cosine, clipping, decay on matrices only, by steps",
        "bits per character within 1 % of the loop by hand, and below an interpolated 5-gram's",
        lambda ours, hand: near("bits")(ours, hand) and ours["bits"] < ours["five_gram_bits"],
        ("bits", "five_gram_bits"),
        beside=True,
    ),
    "function_bert": Job(
        "a Hugging Face BERT, tokenizer and all: which package is this function from?",
        "none: shown beside a logistic regression on a bag of words",
        None,
        ("accuracy", "bag_of_words_accuracy"),
    ),
    "fine_tuning": Job(
        "a timm model pretrained on five classes of CIFAR-10, fine-tuned on the other five: gradual "
        "unfreezing, and LoRA by peft",
        "both are more accurate than a linear probe",
        lambda ours, _: min(ours["unfreezing"], ours["lora"]) > ours["linear_probe"],
        ("unfreezing", "lora", "linear_probe"),
    ),
    "tabular": Job(
        "tables: a regression, and a binary target with AUROC, sample weights and early stopping",
        "none: 10 folds, shown beside scikit-learn's gradient boosting",
        None,
        ("r2", "boosting_r2", "auroc", "boosting_auroc"),
    ),
    "segmentation": Job(
        "segmentation with a second head, two losses logged apart, void pixels",
        "twice the intersection over union of always saying the majority class",
        lambda ours, _: ours["iou"] >= 2 * ours["majority_iou"],
        ("iou", "majority_iou"),
    ),
    "detection": Job(
        "torchvision's detection on drawn shapes",
        "mean average precision (0.50:0.95) over 0.5 on unseen drawings",
        lambda ours, _: ours["map"] > 0.5,
        ("map",),
    ),
    "dcgan": Job(
        "a GAN on MNIST: two optimizers with schedules",
        "the judge is at least 80 % sure of 1,000 samples, on average, and sees all ten digits",
        lambda ours, _: recognised("gan", ours),
        ("gan_confidence", "gan_classes"),
    ),
    "vae": Job(
        "a variational autoencoder on Fashion-MNIST, its bound logged",
        "the judge is at least 80 % sure of 1,000 samples, on average, and sees all ten classes",
        lambda ours, _: recognised("vae", ours),
        ("vae_confidence", "vae_classes", "bound"),
    ),
    "diffusion": Job(
        "denoising diffusion with EMA on Fashion-MNIST",
        "the judge is at least 80 % sure of 1,000 samples, on average, and sees all ten classes",
        lambda ours, _: recognised("diffusion", ours),
        ("diffusion_confidence", "diffusion_classes"),
    ),
    "simclr": Job(
        "SimCLR, and a linear probe of what it learned",
        "the probe is more accurate than that of the untrained network",
        lambda ours, _: ours["probe"] > ours["untrained_probe"],
        ("probe", "untrained_probe"),
    ),
    "distillation": Job(
        "distillation of a large network into a small one",
        "the taught student is more accurate than the student alone",
        lambda ours, _: ours["taught"] > ours["alone"],
        ("taught", "alone", "teacher"),
    ),
    "active_learning": Job(
        "active learning: the data set grows",
        "more accurate than with as many labels chosen at random",
        lambda ours, _: ours["chosen"] > ours["random"],
        ("chosen", "random"),
    ),
    "sequences": Job(
        "packed sequences in a recurrent network, and truncated backpropagation with carried state",
        "both losses within 1 % of the loop by hand",
        lambda ours, hand: near("packed_loss")(ours, hand) and near("truncated_loss")(ours, hand),
        ("packed_loss", "truncated_loss"),
        beside=True,
    ),
    "graphs": Job(
        "a graph network of torch_geometric",
        "more accurate than a multilayer perceptron on the same features",
        lambda ours, _: ours["graph"] > ours["mlp"],
        ("graph", "mlp"),
    ),
    "stream": Job(
        "an endless stream, by steps, with two named validation sets",
        "both losses within 1 % of the loop by hand",
        lambda ours, hand: near("clean_loss")(ours, hand) and near("shifted_loss")(ours, hand),
        ("clean_loss", "shifted_loss"),
        beside=True,
    ),
    "search": Job(
        "five folds, and a search with optuna that prunes",
        "on held-out data better than the defaults, trained for as many epochs",
        lambda ours, _: ours["found"] > ours["default"],
        ("found", "default"),
    ),
    "reinforce": Job(
        "REINFORCE on CartPole",
        "mean return of 100 episodes at least 195",
        lambda ours, _: ours["mean_return"] >= 195,
        ("mean_return",),
    ),
    "muon": Job(
        "Muon for the matrices and AdamW for the rest, on the GPT of characters",
        "none: steps to the loss that AdamW alone ends with",
        None,
        ("muon_steps", "adamw_steps"),
    ),
}
