"""What the documents' equations give for one parameter, a step at a time and out of place.

Each takes the parameter at first, the gradient of each step and the lr of each step, and returns the
parameter after the last one. Defaults are the documents'.
"""

import math

import torch


def sgd(p, grads, lrs, wd=0):
    """Document 003, SGD: reg_step, then opt_step."""
    for g, lr in zip(grads, lrs, strict=True):
        p = p * (1 - lr * wd)
        p = p - g * lr
    return p


def momentum_sgd(p, grads, lrs, wd=0, mom=0.9):
    """Document 003, MomentumSGD."""
    grad_avg = 0
    for g, lr in zip(grads, lrs, strict=True):
        p = p * (1 - lr * wd)
        grad_avg = grad_avg * mom + g * (1 - mom)
        p = p - grad_avg * lr
    return p


def rmsprop(p, grads, lrs, wd=0.0, sqr_mom=0.99, eps=1e-5):
    """Document 003, RMSProp: the average starts at the first square."""
    sqr_avg = None
    for g, lr in zip(grads, lrs, strict=True):
        p = p * (1 - lr * wd)
        sqr_avg = (g**2 if sqr_avg is None else sqr_avg) * sqr_mom + g**2 * (1 - sqr_mom)
        p = p - lr * g / (sqr_avg.sqrt() + eps)
    return p


def adam(p, grads, lrs, wd=0.0, beta1=0.9, beta2=0.99, eps=1e-5):
    """Document 003, Adam: eps inside of the root."""
    avg = sqr_avg = 0
    for i, (g, lr) in enumerate(zip(grads, lrs, strict=True)):
        p = p * (1 - lr * wd)
        avg = beta1 * avg + (1 - beta1) * g
        unbias_avg = avg / (1 - beta1 ** (i + 1))
        sqr_avg = beta2 * sqr_avg + (1 - beta2) * g**2
        unbias_sqr_avg = sqr_avg / (1 - beta2 ** (i + 1))
        p = p - lr * unbias_avg / (unbias_sqr_avg + eps).sqrt()
    return p


def sgd_alternate(p, grads, lrs, momentum=0.9):
    """Document 002, SGD_Alternate: m <- momentum * m + lr * g, from 0."""
    m = 0
    for g, lr in zip(grads, lrs, strict=True):
        m = momentum * m + lr * g
        p = p - m
    return p


def swats(
    p,
    grads,
    lrs,
    betas=(0.9, 0.999),
    eps=1e-8,
    threshold=1e-9,
    switch="global",
    weight_decay=0.0,
    amsgrad=False,
    nesterov=False,
    sgd_scale=None,
):
    """Keskar & Socher 2017, algorithm 1, for a tensor that switches by itself; see also test_swats.py."""
    beta1, beta2 = betas
    avg = sqr_avg = largest = estimate = 0
    at_switch = v = None
    for k, (grad, lr) in enumerate(zip(grads, lrs, strict=True), 1):
        g = grad + weight_decay * p
        ref = lr if sgd_scale is None else sgd_scale
        if at_switch is not None:
            sgd_lr, ref_then = at_switch
            v = beta1 * v + g
            p = p - (1 - beta1) * sgd_lr * (ref / ref_then) * (g + beta1 * v if nesterov else v)
            continue
        avg = beta1 * avg + (1 - beta1) * g
        sqr_avg = beta2 * sqr_avg + (1 - beta2) * g**2
        largest = sqr_avg if k == 1 else torch.maximum(largest, sqr_avg)
        root = (largest if amsgrad else sqr_avg).sqrt()
        u = -lr * math.sqrt(1 - beta2**k) / (1 - beta1**k) * avg / (root + eps)
        p = p + u
        if (ug := (u * g).sum().item()) != 0:
            gamma = (u * u).sum().item() / -ug
            estimate = beta2 * estimate + (1 - beta2) * gamma
            corrected = estimate / (1 - beta2**k)
            if k > 1 and abs(corrected - gamma) < threshold and corrected > 0:
                at_switch, v = (corrected, ref), 0
    return p


def adabound(
    p,
    grads,
    lrs,
    betas=(0.9, 0.999),
    final_lr=0.1,
    gamma=1e-3,
    eps=1e-8,
    weight_decay=0.0,
    amsbound=False,
    base_lr=None,
):
    """Luo et al. 2019, as its authors' code has the bounds."""
    beta1, beta2 = betas
    avg = sqr_avg = largest = 0
    for k, (grad, lr) in enumerate(zip(grads, lrs, strict=True), 1):
        g = grad + weight_decay * p
        avg = beta1 * avg + (1 - beta1) * g
        sqr_avg = beta2 * sqr_avg + (1 - beta2) * g**2
        largest = sqr_avg if k == 1 else torch.maximum(largest, sqr_avg)
        root = (largest if amsbound else sqr_avg).sqrt()
        rate = lr * math.sqrt(1 - beta2**k) / (1 - beta1**k) / (root + eps)
        final = final_lr * lr / (base_lr or lrs[0])
        p = p - rate.clamp(final * (1 - 1 / (gamma * k + 1)), final * (1 + 1 / (gamma * k))) * avg
    return p


# The name of a class in minilearn.optim.OPTIMIZERS -> its reference
REFERENCES = {
    "SGD": sgd,
    "MomentumSGD": momentum_sgd,
    "RMSProp": rmsprop,
    "Adam": adam,
    "SGDAlternate": sgd_alternate,
    "SWATS": swats,
    "AdaBound": adabound,
}
