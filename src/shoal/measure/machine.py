"""Where and with what something is measured."""

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

from shoal import record

_LIBRARIES = ("torchvision", "timm", "transformers", "onnxruntime", "scipy", "numpy")


def machine(device: torch.device | str) -> record.Machine:
    """Describe this computer and its libraries; none of them is imported for it.

    Args:
        device: where the network runs; an accelerator is named in brackets, as in `cuda:0 (NVIDIA H200)`.

    Returns:
        Processor name, cores this process may use, torch's threads, and versions of what is installed.
    """
    versions = {name: version for name in _LIBRARIES if (version := _version(name)) is not None}
    return record.Machine(
        device=_device_name(torch.device(device)),
        processor=_processor(),
        cores=_cores(),
        threads=torch.get_num_threads(),
        system=platform.platform(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        shoal=_version("shoal") or "unknown",
        libraries=versions,
    )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device_name(device: torch.device) -> str:
    if device.type == "cuda" and torch.cuda.is_available():
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return str(device)


def _processor() -> str:
    # platform.processor() is empty on most Linux systems; the kernel knows the name, under a key of its own
    # per family.
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for key in ("model name", "Model", "cpu model"):
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == key and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _cores() -> int:
    # In a container or under taskset the process may use fewer cores than the computer has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
