"""An untrained twin of a model: the same architecture, weights that no training has touched."""

import pytest
import torch

from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.untrained import write_untrained
from domainbed_domainfusion.errors import InputError


@pytest.fixture(scope="module")
def twin(tiny_ldm, tmp_path_factory):
    return write_untrained(tiny_ldm, tmp_path_factory.mktemp("twin") / "ldm")


def weights(folder, part) -> dict:
    return getattr(LatentDiffusion.load(str(folder), device="cpu"), part).state_dict()


@pytest.mark.parametrize("part", ["_unet", "_vae"])
def test_the_same_tensors_with_other_values(tiny_ldm, twin, part):
    trained, untrained = weights(tiny_ldm, part), weights(twin, part)
    assert {name: weight.shape for name, weight in trained.items()} == {
        name: weight.shape for name, weight in untrained.items()
    }
    same = [name for name, weight in trained.items() if weight.std() > 0 and torch.equal(weight, untrained[name])]
    assert same == []


def test_the_schedule_and_the_prompts_tokens_stay(tiny_ldm, twin):
    theirs, ours = (LatentDiffusion.load(str(path), device="cpu") for path in (tiny_ldm, twin))
    assert torch.equal(theirs.alphas_cumprod, ours.alphas_cumprod)
    assert theirs.scaling_factor == ours.scaling_factor
    tokens = [model._tokenizer_and_encoder()[0]("a photo of a dog").input_ids for model in (theirs, ours)]
    assert tokens[0] == tokens[1]


def test_it_is_a_function_of_its_seed(tiny_ldm, twin, tmp_path):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    again, other = write_untrained(tiny_ldm, tmp_path / "a"), write_untrained(tiny_ldm, tmp_path / "b", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    name = "conv_in.weight"
    assert torch.equal(weights(again, "_unet")[name], weights(twin, "_unet")[name])
    assert not torch.equal(weights(other, "_unet")[name], weights(twin, "_unet")[name])


def test_a_folder_that_exists_is_left_alone(tiny_ldm, tmp_path):
    with pytest.raises(InputError, match="exists: name a folder that does not"):
        write_untrained(tiny_ldm, tmp_path)
    assert list(tmp_path.iterdir()) == []
