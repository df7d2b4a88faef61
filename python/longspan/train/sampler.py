"""The order of rows over a whole run."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class RunSampler(Sampler[int]):
    """Row indices of a whole run: the rows in order, then one permutation per further pass over the data.

    `longspan.data` has shuffled the rows already; permutations are drawn from (seed, pass) alone. Batches run
    over the end of a pass, so every step has the same number of rows. The order depends neither on the length
    of the run nor on the global random state: skipping to a step means skipping integers.
    """

    def __init__(self, rows: int, count: int, seed: int) -> None:
        if rows < 1:
            raise ValueError("the training data has no rows; give more text or a smaller data.length")
        self.rows = rows
        self.count = count
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        left = self.count
        number = 0
        while left > 0:
            # torch's generator keeps only 32 bits of a seed; NumPy mixes all of both numbers.
            order = (
                np.random.default_rng((self.seed, number)).permutation(self.rows) if number else np.arange(self.rows)
            )
            yield from order[:left].tolist()
            left -= self.rows
            number += 1
