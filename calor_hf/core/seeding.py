"""Random streams that depend on what is drawn, never on when or by which worker."""

import numpy as np


def sample_rng(*key: int) -> np.random.Generator:
    """Random generator of one draw, named by non-negative whole numbers such as (seed, epoch, index).

    The same key gives the same stream in every process, worker and resumed run; different keys give independent
    streams (NumPy's ``SeedSequence`` over a Philox counter generator).
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
