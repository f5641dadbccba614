"""The full-size architecture without weights, which `domainfusion estimate` measures on."""

import json

import torch

from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.random_model import randomise, write_random_model
from domainbed_domainfusion.diffusion.source import check_folder


def test_every_weight_of_a_loaded_stand_in_is_randomised(tiny_ldm):
    """On a CPU the weights of its convolutions are channels_last."""
    ldm = LatentDiffusion.load(tiny_ldm, device="cpu")
    weights = [weight for network in (ldm._unet, ldm._vae) for weight in network.parameters()]
    assert any(weight.ndim == 4 and not weight.is_contiguous() for weight in weights)
    before = [weight.clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.zero_()
    randomise(ldm)
    made = torch.cat([weight.flatten() for weight in weights])
    assert (made != 0).all() and 0.015 < made.std() < 0.025
    with torch.no_grad():  # the process shares the model
        for weight, value in zip(weights, before):
            weight.copy_(value)


def test_the_stand_in_has_stable_diffusions_size_and_takes_no_room(tmp_path):
    """The numbers of parameters are those of the published files."""
    folder = write_random_model(tmp_path / "sd")
    check_folder(folder)
    weights = {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
    for part, expected in weights.items():
        (file,) = (folder / part).glob("*.safetensors")
        with open(file, "rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        shapes = [
            entry["shape"]
            for name, entry in header.items()
            if name != "__metadata__" and not name.endswith("position_ids")
        ]
        assert sum(torch.Size(shape).numel() for shape in shapes) == expected
        assert file.stat().st_blocks * 512 < file.stat().st_size / 100
