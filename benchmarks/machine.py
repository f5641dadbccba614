"""On what, with what and when something was measured."""

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch


def describe(device: str, command: list[str]) -> dict[str, object]:
    """Plain JSON values: the processor and its threads, the GPU if it is measured, versions, how busy
    the machine was in the last minute (processes that want to run), command, date (UTC)."""
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
    """The model's name as the system knows it; the architecture where it does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
