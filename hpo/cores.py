"""How many cores this process may use: of the machine, and of the share of its time that its container has; and what
they can.
"""

import math
import os
from pathlib import Path

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
CPU_QUOTA_V1 = Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")


def cores() -> int:
    return max(1, math.ceil(min(cores_of_machine(), _cpu_quota())))


def cores_of_machine() -> int:
    """Without regard to a container's share."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_quota() -> float:
    """Cores' worth of time; infinite without a limit. Of control groups in version 2, then 1."""
    try:
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # none; "max"
        pass
    try:
        quota, period = (file.read_text(encoding="ascii") for file in CPU_QUOTA_V1)
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):
        return math.inf


def cpu_multiplies_bf16() -> bool:
    """Whether the CPU has bf16 instructions; emulated, bf16 is slower than fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
