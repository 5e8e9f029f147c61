"""Measures the memory of this process's device: of a GPU what torch allocates, on a CPU the process's anonymous pages.

The kernel's own peak (VmHWM) counts mapped files too, such as a checkpoint that is read; the peak of anonymous pages it
does not keep, so a thread looks every 20 ms. What comes and goes between two looks is not seen.
"""

import os
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from qwen_align.align.estimation.host_memory import read_memory_limit
from qwen_align.align.training.distributed import gather_objects

GIB = 2**30
_SECONDS_BETWEEN_LOOKS = 0.02
_STATM = Path("/proc/self/statm")  # total, resident, shared (mapped files and shared memory), in pages


class PeakMemory(NamedTuple):
    """The most memory that was held on a device since the stage began, in GiB.

    held: by tensors on a GPU, by the process on a CPU less what it held before the stage (its imports). reserved: of a
    GPU, what torch's allocator has taken. capacity: of the device, None where it is not known.
    """

    held: float
    reserved: float | None = None
    capacity: float | None = None


class CpuMeter:
    """A thread that looks at the process's anonymous memory and keeps the most it has seen."""

    def __init__(self) -> None:
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._capacity = read_memory_limit() / GIB
        self.restart()
        threading.Thread(target=self._look_on, name="memory meter", daemon=True).start()

    def restart(self) -> None:
        """Begins anew, from the memory that is held now."""
        self.baseline = self.peak = self._read_anonymous_bytes()

    def read_peak(self) -> PeakMemory:
        """Returns the most memory seen, less what was held before the stage began."""
        self.peak = max(self.peak, self._read_anonymous_bytes())
        return PeakMemory((self.peak - self.baseline) / GIB, capacity=self._capacity)

    def _look_on(self) -> None:
        """Looks again and again, as long as the process lives."""
        while True:
            self.peak = max(self.peak, self._read_anonymous_bytes())
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _read_anonymous_bytes(self) -> int:
        """Reads how many bytes of anonymous memory are resident (RssAnon of /proc/self/status)."""
        _, resident, shared, *_ = _STATM.read_bytes().split()
        return (int(resident) - int(shared)) * self._page


class CudaMeter:
    """What torch says of the memory that it has allocated on a GPU."""

    def __init__(self, device: Any) -> None:
        import torch

        self._device = device
        torch.cuda.reset_peak_memory_stats(device)
        self._capacity = read_device_capacity(device)

    def read_peak(self) -> PeakMemory:
        """Returns the most memory of tensors and of the allocator since the stage began."""
        import torch

        held, reserved = torch.cuda.max_memory_allocated(self._device), torch.cuda.max_memory_reserved(self._device)
        return PeakMemory(held / GIB, reserved / GIB, self._capacity)


_meter: CpuMeter | CudaMeter | None = None  # of this process, which has one device


def start_memory_meter(device: Any) -> None:
    """Starts measuring the memory of a torch device. Called once, when a stage begins."""
    global _meter
    if device.type == "cuda":
        _meter = CudaMeter(device)
    elif isinstance(_meter, CpuMeter):
        _meter.restart()
    elif _STATM.exists():
        _meter = CpuMeter()


def read_peak_memory() -> PeakMemory | None:
    """Returns the peak memory of this process's device. Returns None where it is not measured, as on macOS."""
    return _meter.read_peak() if _meter else None


def gather_peak_memory() -> PeakMemory | None:
    """Returns the peak memory of the fullest of the stage's devices. Every process has to call it."""
    peaks = [peak for peak in gather_objects(read_peak_memory()) if peak is not None]
    return max(peaks, default=None)


def read_device_capacity(device: Any) -> float:
    """Returns the memory of a torch device in GiB: of a GPU, else of the machine or container."""
    if device.type != "cuda":
        return read_memory_limit() / GIB
    import torch

    return float(torch.cuda.get_device_properties(device).total_memory / GIB)
