"""What the documents' equations give for one parameter, a step at a time and out of place.

Each takes the parameter at first, the gradient of each step and the lr of each step, and returns the
parameter after the last one. Defaults are the documents'.
"""


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


# The name of a class in minilearn.optim.OPTIMIZERS -> its reference
REFERENCES = {
    "SGD": sgd,
    "MomentumSGD": momentum_sgd,
    "RMSProp": rmsprop,
    "Adam": adam,
    "SGDAlternate": sgd_alternate,
}
