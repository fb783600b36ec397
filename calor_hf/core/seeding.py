"""Random streams that depend on what is drawn, never on when or by which worker."""

import numpy as np


def sample_rng(*key: int) -> np.random.Generator:
    """Random generator of one draw, named by whole numbers from 0 to 2⁶⁴ − 1 such as (seed, epoch, index).

    The same key gives the same stream in every process, worker and resumed run; different keys give independent
    streams (NumPy's ``SeedSequence`` over a Philox counter generator).
    """
    # SeedSequence fills up with zeros and takes 32-bit words: the length and two words a number keep keys apart.
    words = [len(key)] + [word for number in key for word in (number & 0xFFFFFFFF, number >> 32)]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
