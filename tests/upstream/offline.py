"""Random weights for DomainBed's ResNets, in the caches where they look first: no network is needed."""

from pathlib import Path

import timm
import torch
import torchvision
from safetensors.torch import save_file

TORCHVISION_FILES = {"resnet18": "resnet18-f37072fd.pth", "resnet50": "resnet50-0676ba61.pth"}
TIMM_NAME = "resnet50.ram_in1k"
REVISION = "0" * 40


def offline_environment(folder: Path) -> dict[str, str]:
    """Write the files under `folder`. Returns the environment variables that make torchvision and timm find them."""
    checkpoints = folder / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    torch.manual_seed(0)
    for name, file in TORCHVISION_FILES.items():
        torch.save(torchvision.models.get_model(name).state_dict(), checkpoints / file)
    repository = folder / "hf" / "hub" / f"models--timm--{TIMM_NAME}"
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    save_file(timm.create_model(TIMM_NAME).state_dict(), str(snapshot / "model.safetensors"))
    return {
        "TORCH_HOME": str(folder / "torch"),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "HOME": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
