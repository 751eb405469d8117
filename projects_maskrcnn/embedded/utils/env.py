"""Random seeds. Stands for `detectron2.utils.env`."""

import logging
import os
import random
from datetime import datetime

import numpy as np
import torch

logger = logging.getLogger(__name__)


def seed_all_rng(seed: int | None = None) -> None:
    """Seed torch, numpy and `random`; without a seed, with one from time and process, which is logged."""
    if seed is None:
        seed = os.getpid() + int(datetime.now().strftime("%S%f")) + int.from_bytes(os.urandom(2), "big")
        logger.info("Using a generated random seed %d", seed)
    seed %= 2**32
    np.random.seed(seed)
    torch.manual_seed(seed)
    random.seed(seed)
