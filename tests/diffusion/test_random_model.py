"""The full-size architecture without weights, which `domainfusion estimate` measures on."""

import json
import shutil

import pytest
import torch

from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.random_model import randomise, write_random_model
from domainbed_domainfusion.diffusion.single_file import CONFIGS
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


#: Where the configuration of Stable Diffusion 2.1 differs from that of 1.x.
CHANGES_OF_2 = {
    "unet": {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True},
    "text_encoder": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 23,
        "hidden_act": "gelu",
    },
    "scheduler": {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction"},
}  # fmt: skip


def configs_of_2(folder):
    """The configurations of Stable Diffusion 2.1."""
    shutil.copytree(CONFIGS, folder)
    for part, changes in CHANGES_OF_2.items():
        (config,) = (folder / part).glob("*config.json")
        config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    return folder


@pytest.mark.parametrize(
    "version, weights",
    [
        (1, {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}),
        (2, {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840}),
    ],
)
def test_the_stand_in_has_stable_diffusions_size_and_takes_no_room(tmp_path, version, weights):
    """The numbers of parameters are those of the published files."""
    configs = CONFIGS if version == 1 else configs_of_2(tmp_path / "configs")
    folder = write_random_model(tmp_path / "sd", configs)
    check_folder(folder)
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
