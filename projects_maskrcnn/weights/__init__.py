"""Weights files: what they may be, read without running what is in them, fitted to a model, and written.

Stands below both frameworks, as `ops` does: imports third parties, and nothing of ours.
"""

from .fitting import load_for
from .reader import CheckpointError, local_file, read_weights
from .writer import rewrite_weights, write_weights
