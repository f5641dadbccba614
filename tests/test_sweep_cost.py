"""The prices in `sweep_cost.py` against the networks that they stand for: torch's own FLOP counter, on no data."""

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from domainbed_domainfusion.diffusion.single_file import CONFIGS

from . import sweep_cost


def flop(call) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


def test_flop_of_the_full_size_diffusion_model():
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(CONFIGS / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(CONFIGS / "vae"))
        image, latent = torch.empty(1, 3, 320, 320), torch.empty(1, 4, 40, 40)
        prompt, t = torch.empty(1, 77, 768), torch.empty(1)
    assert image.shape[-1] == sweep_cost.SIZE
    assert flop(lambda: unet(latent, t, prompt)) == pytest.approx(sweep_cost.UNET, rel=1e-3)
    assert flop(lambda: vae.encode(image)) == pytest.approx(sweep_cost.ENCODER, rel=1e-3)
    assert flop(lambda: vae.decode(latent)) == pytest.approx(sweep_cost.DECODER, rel=1e-3)


@pytest.mark.parametrize(
    "backbone, network", [("resnet50", "resnet50"), ("regnety_16gf_swag", "regnet_y_16gf")], ids=lambda name: name
)
def test_flop_and_size_of_the_classifiers(backbone, network):
    model = torchvision.models.get_model(network, weights=None).to("meta").eval()
    image = torch.empty(1, 3, 224, 224, device="meta")
    assert flop(lambda: model(image)) == pytest.approx(sweep_cost.FORWARD[backbone], rel=1e-3)
    numbers = sum(value.numel() for value in model.state_dict().values())
    head = sum(value.numel() for value in model.fc.state_dict().values())
    assert numbers - head == pytest.approx(sweep_cost.BODY[backbone], rel=1e-3)
    assert model.fc.in_features == sweep_cost.FEATURES[backbone]
