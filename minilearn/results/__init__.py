"""What data and predictions look like: figures, each of which is returned and neither shown nor saved."""

from .confusion import confusion_matrix, plot_confusion
from .images import plot_top_losses, show_batch, show_results
from .looking import Sample
from .losses import top_losses

__all__ = [
    "Sample",
    "confusion_matrix",
    "plot_confusion",
    "plot_top_losses",
    "show_batch",
    "show_results",
    "top_losses",
]
