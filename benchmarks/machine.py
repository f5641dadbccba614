"""The machine, the versions, the command and the date of a measurement."""

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch


def describe(device: str, command: list[str]) -> dict[str, object]:
    """Plain JSON values: the processor and its threads, the GPU (if device is cuda), versions, the load average of the
    last minute, the command, and the date (UTC)."""
    machine = {
        "cpu": _processor(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "transformers")},
    }
    if torch.device(device).type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        machine.update(
            gpu=properties.name, gpu_memory_gb=round(properties.total_memory / 1e9, 1), cuda=torch.version.cuda
        )
    machine["load average"] = round(os.getloadavg()[0], 1)
    machine["command"] = " ".join(["python -m benchmarks", *command])
    machine["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return machine


def _processor() -> str:
    """The processor's model name from /proc/cpuinfo, or else the platform's name or architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
