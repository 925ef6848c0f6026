"""A trained model in one file, and what reads it without the model's source."""

from .predictor import Prediction, Predictor, load_predictor

__all__ = ["Prediction", "Predictor", "load_predictor"]
