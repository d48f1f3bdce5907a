"""Random numbers of one sample."""

import random

import numpy as np
import torch

from seamless_d2.data.seeding import seeded


def test_random_numbers_follow_seed_and_sample_and_leave_no_trace() -> None:
    states = np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state()
    with seeded(5, 7) as first:
        drawn = np.random.rand(), random.random()
    with seeded(5, 7) as second:
        assert drawn == (np.random.rand(), random.random())
    with seeded(5, 8) as third:
        assert drawn != (np.random.rand(), random.random())
    assert first == second != third and 0 <= first < 2**63
    assert np.array_equal(states[0], np.random.get_state()[1]) and states[1] == random.getstate()
    assert torch.equal(states[2], torch.get_rng_state())
