"""The GPT, the text and the parameter groups, which are those of ../char_gpt."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

from char_gpt.model import GPT, data, decay_matrices, loss_func  # noqa: F401  found on the path above


def is_hidden(name, p):
    """Whether a parameter is a matrix inside the blocks: neither the embedding nor the head."""
    return name.startswith("blocks") and p.ndim == 2
