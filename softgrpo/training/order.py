"""The order of a run's data and the seeds of its rollouts: functions of seed, epoch and rollout."""

from __future__ import annotations

import numpy as np
from trl.trainer.utils import RepeatSampler


class EpochSampler(RepeatSampler):
    """TRL's sampler whose order is a matter of seed and epoch, so that a resumed run meets it."""

    def set_epoch(self, epoch: int) -> None:
        """Called as an epoch begins."""
        self.generator.manual_seed((self.seed or 0) + epoch)


def rollout_seed(seed: int, rollout: int) -> int:
    """The seed of one rollout: the run's n-th in training, or that of evaluation (-1)."""
    return int(np.random.SeedSequence([seed, rollout + 1]).generate_state(1, np.uint64)[0])
