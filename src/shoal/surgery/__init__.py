"""Make the change, on a copy, and certify it."""

from shoal.deprecated import former_names
from shoal.surgery.canonical_form import model_digest
from shoal.surgery.certify import certify, strict_identities
from shoal.surgery.fold import FoldResult, fold, fold_
from shoal.surgery.hugging_face import compact_hf_model, is_hugging_face
from shoal.surgery.remove import apply, check_removable, remove_blocks, remove_blocks_, retargeted
from shoal.surgery.signature import example_of, input_specs, signature_of

__all__ = [
    "FoldResult",
    "apply",
    "certify",
    "check_removable",
    "compact_hf_model",
    "example_of",
    "fold",
    "fold_",
    "input_specs",
    "is_hugging_face",
    "model_digest",
    "remove_blocks",
    "remove_blocks_",
    "retargeted",
    "signature_of",
    "strict_identities",
]

__getattr__ = former_names(__name__, {"shorten": "shoal.surgery:compact_hf_model"})
