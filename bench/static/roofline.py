"""What a kernel would take if nothing but bandwidth, tensor cores and issue slots bound it: predictions, not measurements.

It sees no cache misses, bank conflicts, latencies or clocks. It catches what was declared wrong or compiled badly.
"""

from dataclasses import asdict, dataclass
from math import ceil

from fastdgl_kernels._tuning import LIMITS

from .assembly import Facts
from .case import Case


@dataclass(frozen=True)
class Device:
    """An architecture. Rates of the H100 rounded from measurements by others, the others' from datasheets (dense, fp32 sums);
    none measured by us."""

    name: str
    multiprocessors: int
    clock: float  # Hz
    registers: int  # per multiprocessor
    shared: int  # bytes per multiprocessor
    threads: int  # per multiprocessor
    bandwidth: float  # bytes / s
    matrix_rate: float  # FLOP / s


def _device(arch: int, name: str, clock: float, threads: int, bandwidth: float, matrix_rate: float) -> Device:
    limits = LIMITS[arch]
    shared = limits.shared_per_multiprocessor
    return Device(name, limits.multiprocessors, clock, 65536, shared, threads, bandwidth, matrix_rate)


DEVICES = {
    75: _device(75, "T4", 1.59e9, 1024, 0.32e12, 65e12),
    80: _device(80, "A100", 1.41e9, 2048, 1.6e12, 270e12),
    86: _device(86, "RTX 3090", 1.695e9, 1536, 0.936e12, 71e12),
    89: _device(89, "RTX 4090", 2.52e9, 1536, 1.008e12, 165e12),
    90: _device(90, "H100", 1.755e9, 2048, 3.0e12, 800e12),
    100: _device(100, "B200", 1.85e9, 2048, 7.7e12, 2250e12),
    120: _device(120, "RTX 5090", 2.41e9, 1536, 1.79e12, 209e12),
}


@dataclass(frozen=True)
class Prediction:
    """Microseconds of each bound, and what they come to."""

    memory_us: float
    matrix_us: float
    issue_us: float
    roofline_us: float
    predicted_us: float
    occupancy: int  # programs per multiprocessor
    waves: float

    @property
    def ratio(self) -> float:
        """Predicted over roofline."""
        return self.predicted_us / self.roofline_us if self.roofline_us else 1.0

    @property
    def bound(self) -> str:
        """What it is bound by."""
        return max([(self.memory_us, "memory"), (self.matrix_us, "matrix"), (self.issue_us, "issue")])[1]

    def as_dict(self) -> dict:
        return {key: round(n, 2) for key, n in asdict(self).items()} | {"ratio": round(self.ratio, 3), "bound": self.bound}


def predicted(case: Case, facts: Facts) -> Prediction:
    """max of bytes / bandwidth, FLOPs / rate * whole waves, and warp instructions / issue slots."""
    device = DEVICES[case.arch]
    occupancy = _occupancy(case, facts, device)
    waves = case.programs / (max(occupancy, 1) * device.multiprocessors)
    memory = case.bytes / device.bandwidth
    matrix = case.flops / device.matrix_rate
    executed = facts.instructions + facts.loop * (case.trips - 1)
    # four schedulers, each one warp instruction a cycle
    issue = executed * case.num_warps * case.programs / (4 * device.multiprocessors * device.clock)
    whole = matrix * ceil(waves) / waves if matrix else 0.0
    return Prediction(
        memory * 1e6,
        whole * 1e6,
        issue * 1e6,
        max(memory, matrix) * 1e6,
        max(memory, whole, issue) * 1e6,
        occupancy,
        waves,
    )


def _occupancy(case: Case, facts: Facts, device: Device) -> int:
    threads = 32 * case.num_warps
    registers = -(-facts.registers // 8) * 8 * threads
    shared = device.shared // (facts.shared + 1024) if facts.shared else 32
    return min(device.registers // registers, shared, device.threads // threads, 32)
