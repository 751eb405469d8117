"""What the project adds to the framework's evaluation: published figures beside the measured ones, proposal files."""

from .proposals import ProposalWriter
from .reference_figures import check_figures, log_reference_figures, reference_table
