"""Counter-based random numbers: each is a pure function of a key and a position.

An image therefore gets the same numbers in any batch, order and worker, and a whole batch is drawn at once. Bits and
uniform numbers are identical on every device. Normal ones depend on the device's logarithm and cosine: identical on
devices of the same kind, equal up to the last digits on others. The mixing function is SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), which needs arithmetic modulo 2^64; torch's int64
wraps that way.
"""

import hashlib
import math

import torch
from torch import Tensor

_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def derive_keys(image_keys: Tensor, *purpose: str | int) -> Tensor:
    """int64 (n,): the keys of n images for a purpose, such as ("gaussian-noise", replicate); they differ by purpose."""
    digest = hashlib.sha256("\x1f".join(map(str, purpose)).encode()).digest()
    start = int.from_bytes(digest[:8], "little", signed=True)
    return _mix(_mix(image_keys * _GOLDEN_GAMMA + start))


def random_bits(keys: Tensor, count: int) -> Tensor:
    """int64 (n, count): uniform over all 64-bit values; row i depends on keys[i] alone."""
    counters = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device) * _GOLDEN_GAMMA
    return _mix(keys[:, None] + counters)


def uniform(keys: Tensor, count: int) -> Tensor:
    """float32 (n, count): uniform in [0, 1), multiples of 2^-24."""
    return _shift_right(random_bits(keys, count), 40).to(torch.float32) * 2.0**-24


def normal(keys: Tensor, count: int) -> Tensor:
    """float32 (n, count): standard normal, two from each 64 bits (Box and Muller, 1958); at most 5.9 in magnitude."""
    bits = random_bits(keys, (count + 1) // 2)
    radius = (_shift_right(bits, 40).to(torch.float32) + 0.5).mul_(2.0**-24).log_().mul_(-2).sqrt_()
    angle = (bits & 0xFFFFFF).to(torch.float32).mul_(2 * math.pi * 2.0**-24)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _MIX_1
    z = (z ^ _shift_right(z, 27)) * _MIX_2
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, places: int) -> Tensor:
    """Logical right shift; torch's operator is arithmetic, it keeps the sign."""
    return (z >> places) & ((1 << (64 - places)) - 1)
