"""Make the change, on a copy, and certify it."""

from shoal.surgery.canonical import model_digest
from shoal.surgery.certify import certify
from shoal.surgery.fold import FoldResult, fold, fold_
from shoal.surgery.identities import strict_identities
from shoal.surgery.remove import apply, check_removable, remove_blocks, remove_blocks_
from shoal.surgery.shorten import is_hugging_face, shorten
from shoal.surgery.signature import example_of, input_specs, signature_of

__all__ = [
    "FoldResult",
    "apply",
    "certify",
    "check_removable",
    "example_of",
    "fold",
    "fold_",
    "input_specs",
    "is_hugging_face",
    "model_digest",
    "remove_blocks",
    "remove_blocks_",
    "shorten",
    "signature_of",
    "strict_identities",
]
