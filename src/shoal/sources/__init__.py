"""Where networks, weights and data come from: each named by a short specification."""

from shoal.deprecated import former_names
from shoal.sources.audio import AudioFormat, infer_audio_format
from shoal.sources.builtin_networks import DigitsResNet, digits_resnet
from shoal.sources.data import Data, load_data
from shoal.sources.models import LoadedModel, load_model
from shoal.sources.registry import DataSource, ModelSource
from shoal.sources.tokens import TextFormat, infer_text_format
from shoal.sources.user_code import Consent, load_function
from shoal.sources.weights import load_weights

__all__ = [
    "AudioFormat",
    "Consent",
    "Data",
    "DataSource",
    "DigitsResNet",
    "LoadedModel",
    "ModelSource",
    "TextFormat",
    "digits_resnet",
    "infer_audio_format",
    "infer_text_format",
    "load_data",
    "load_function",
    "load_model",
    "load_weights",
]

__getattr__ = former_names(
    __name__, {"Reading": "shoal.sources:TextFormat", "reading_of": "shoal.sources:infer_text_format"}
)
