"""Random numbers for privacy: AES-256-CTR under a key of the system, which no seed repeats.

    source = Noise()            # a fresh key: one for each round and purpose
    source.normal(8)            # N(0, 1) in float64, by Box and Muller (1958)

rng.py is for numbers that have to repeat; these must not. A uniform number has 53 bits, so |N| is at most 8.7, which
leaves out a probability of 2⁻⁵⁴.
"""

from __future__ import annotations

import hashlib
import os

import numpy as np

from shepherd.errors import missing_extra

KEY_BYTES = 32


class Noise:
    """A stream of random numbers under a key of 32 bytes; without one, under a fresh key of the system.

    Raises UsageError where the extra `dp` is missing.
    """

    def __init__(self, key: bytes | None = None) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        except ModuleNotFoundError:
            raise missing_extra("cryptography", "dp") from None
        key = os.urandom(KEY_BYTES) if key is None else key
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, got {len(key)}")
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def uniform(self, count: int) -> np.ndarray:
        """The next `count` uniform numbers above 0, float64[count]: u = (w >> 11 + ½) · 2⁻⁵³ for words w of 64 bits."""
        words = np.frombuffer(self._cipher.update(bytes(8 * count)), "<u8")
        return ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def normal(self, count: int) -> np.ndarray:
        """The next `count` numbers of N(0, 1), float64[count]: all cosines, then all sines."""
        half = (count + 1) // 2
        radii = np.sqrt(-2 * np.log(self.uniform(half)))
        angles = 2 * np.pi * self.uniform(half)
        return np.concatenate([radii * np.cos(angles), radii * np.sin(angles)])[:count]


def repeatable_key(seed: int, round_number: int, purpose: str) -> bytes:
    """The key of a run whose noise repeats, and which is therefore not private (privacy.repeatable_noise)."""
    return hashlib.sha256(f"shepherd repeatable noise/{seed}/{round_number}/{purpose}".encode()).digest()
