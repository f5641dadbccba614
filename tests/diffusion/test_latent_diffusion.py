"""Loading, sharing and using the frozen LDM."""

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from domainbed_domainfusion.diffusion import model
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.diffusion.source import resolve_source
from domainbed_domainfusion.errors import InputError
from tests.tiny_ldm import make_tiny_stable_diffusion


def test_an_unknown_dtype(folder):
    with pytest.raises(InputError) as error:
        LatentDiffusion.load(str(folder), device="cpu", dtype="int8")
    assert str(error.value) == "The LDM's dtype int8 is unknown: use one of float32, float16, bfloat16, float64."


def test_an_unknown_scheduler(ldm):
    with pytest.raises(InputError) as error:
        ldm.scheduler("euler")
    assert str(error.value) == "The scheduler euler is unknown: use one of ddim, pndm, dpmsolver++, lcm, folder."


def test_lcm_needs_a_latent_consistency_model(folder, ldm):
    for refused in (lambda: ldm.scheduler("lcm"), lambda: resolve_source(str(folder), scheduler="lcm")):
        with pytest.raises(InputError) as error:
            refused()
        assert str(error.value) == (
            f"The scheduler lcm needs a latent consistency model, but the model in {folder} has a PNDMScheduler: use "
            "ddim, pndm or dpmsolver++, or a model with an LCMScheduler, such as SimianLuo/LCM_Dreamshaper_v7."
        )


@pytest.mark.parametrize("size, sizes", [(33, "32 or 36"), (6, "8"), (8, None), (32, None), (36, None)])
def test_image_sizes(ldm, size, sizes):
    if sizes is None:
        ldm.check_image_size(size)
        return
    with pytest.raises(InputError) as error:
        ldm.check_image_size(size)
    assert str(error.value) == (
        f"An image size of {size} does not fit {ldm.source}, which needs a multiple of 4 pixels from 8 on: use {sizes}."
    )


@pytest.mark.parametrize("size", [64, 72, 224])
def test_sizes_that_pass_the_check_run(tmp_path, size):
    """Also where the U-Net halves an odd number of latents."""
    ldm = LatentDiffusion.load(str(make_tiny_stable_diffusion(tmp_path, size="small")), device="cpu")
    ldm.check_image_size(size)
    with torch.no_grad():
        latents = ldm.encode(torch.zeros(1, 3, size, size))
        noise = ldm.predict_noise(latents, torch.tensor([500]), torch.zeros(1, 77, 32))
    assert ldm.scale_factor == 8 and noise.shape == latents.shape == (1, 4, size // 8, size // 8)
    assert ldm.decode(latents).shape == (1, 3, size, size)


def test_one_load_per_process(folder, ldm):
    assert LatentDiffusion.load(str(folder), device="cpu") is ldm
    assert LatentDiffusion.load(f"{folder}/", device=torch.device("cpu"), dtype="float32") is ldm
    assert LatentDiffusion.load(str(folder), device="cpu", dtype="bfloat16") is not ldm


def test_a_module_that_holds_it_has_none_of_it(ldm, prompts):
    module = torch.nn.Linear(2, 2)
    bare = len(pickle.dumps(module))
    module.ldm = ldm
    assert set(module.state_dict()) == {"weight", "bias"} and len(list(module.parameters())) == 2
    assert list(module.modules()) == [module]
    assert len(pickle.dumps(module)) < bare + 1000
    twin = copy.deepcopy(module)
    assert twin.ldm is ldm and copy.copy(ldm) is ldm
    assert pickle.loads(pickle.dumps(module)).ldm is ldm
    module.to(torch.float64)
    assert ldm.encode(torch.zeros(1, 3, 32, 32)).dtype == torch.float32


def test_it_is_frozen(ldm):
    networks = [ldm._unet, ldm._vae, ldm._tokenizer_and_encoder()[1]]
    assert not any(network.training for network in networks)
    assert not any(parameter.requires_grad for network in networks for parameter in network.parameters())


def test_encoding_and_decoding_are_the_vaes(folder, ldm, images):
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    latents = ldm.encode(images)
    assert torch.allclose(latents, vae.encode(images).latent_dist.mean * 0.4, atol=1e-5)
    assert torch.allclose(ldm.decode(latents), vae.decode(latents / 0.4).sample.clamp(-1, 1), atol=1e-5)


def test_the_memory_format_changes_nothing_but_speed(folder, images):
    """Convolutions keep the channels innermost on a CPU, and so do their results."""
    ldm = LatentDiffusion.load(str(folder), device="cpu", dtype="float64")
    weight = ldm._unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    latents, layouts = ldm.encode(images), []
    hook = ldm._unet.mid_block.register_forward_hook(
        lambda *parts: layouts.append(parts[-1].is_contiguous(memory_format=torch.channels_last))
    )
    embeddings, times = torch.zeros(3, 77, 16), torch.tensor([1, 2, 3])
    noise = ldm.predict_noise(latents, times, embeddings)
    hook.remove()
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float64).eval()
    assert layouts == [True]
    assert torch.allclose(noise, unet(latents, times, embeddings.double()).sample, rtol=1e-12, atol=1e-12)


def test_decoding_in_slices_is_decoding_at_once(ldm, monkeypatch):
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = ldm.decode(latents)
    monkeypatch.setitem(model.DECODER_SLICE, "cpu", 2 * 32 * 32)
    assert torch.allclose(ldm.decode(latents), whole, atol=1e-5)


def test_latents_and_noise_are_differentiable(ldm, prompts, images):
    images.requires_grad_()
    latents = ldm.encode(images)
    noise = ldm.predict_noise(latents, torch.tensor([1, 2, 3]), prompts.conditional)
    (gradient,) = torch.autograd.grad(noise.square().sum(), images)
    assert gradient.abs().sum() > 0


def test_embeddings_are_the_pipelines(folder, ldm):
    tokens = CLIPTokenizer.from_pretrained(folder / "tokenizer")(
        ["a dog", ""], padding="max_length", max_length=77, return_tensors="pt"
    ).input_ids
    expected = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()(tokens)[0]
    assert torch.equal(ldm.embed(["a dog", ""]), expected)


def test_prompts_are_in_label_order(ldm, prompts):
    assert prompts.texts == ["a photo of a dog", "a photo of a cat", "a photo of a giraffe"]
    expected = ldm.embed(["a photo of a giraffe", "a photo of a dog"])
    assert torch.allclose(prompts.matched(torch.tensor([2, 0])), expected, atol=1e-6)
    assert torch.allclose(prompts.unconditional, ldm.embed([""]), atol=1e-6)
    assert prompts.matched(torch.tensor([2, 0], dtype=torch.int32)).shape == (2, 77, 16)


def test_the_text_encoder_can_be_dropped(ldm):
    before = ldm.embed(["a dog"])
    ldm.drop_text_encoder()
    assert ldm._text_encoder is None
    assert torch.equal(ldm.embed(["a dog"]), before)


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_a_template_needs_one_place_for_the_name(ldm, template):
    with pytest.raises(InputError) as error:
        Prompts(ldm, ["dog"], template)
    assert str(error.value) == (f"The prompt template {template!r} must contain {{}} once, where the class name goes.")


def test_a_prompt_too_long_is_not_cut(ldm):
    with pytest.raises(InputError) as error:
        ldm.embed(["dog " * 40])
    assert str(error.value) == (
        f"The prompt {'dog ' * 40!r} has 122 tokens but the text encoder of {ldm.source} "
        "reads 77: shorten the template or the class name."
    )


def test_classes_the_tokenizer_cannot_tell_apart(broken):
    (broken / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)  # older transformers write none
    vocabulary = json.loads((broken / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    known = {text: number for text, number in vocabulary.items() if text[0] not in "cat"}
    (broken / "tokenizer" / "vocab.json").write_text(json.dumps(known), encoding="utf-8")
    ldm = LatentDiffusion.load(str(broken), device="cpu")
    with pytest.raises(InputError) as error:
        Prompts(ldm, ["cat", "act"])
    assert str(error.value) == (
        f"The tokenizer of {broken} does not know the words that tell 'a photo of a act' from 'a photo of a cat': use "
        "other class names, another prompt template or another LDM."
    )


def test_register_and_the_layout_check_do_not_import_diffusers():
    code = (
        "import sys, domainbed_domainfusion.register, domainbed_domainfusion.diffusion.source; "
        "sys.exit('diffusers' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_maker_is_deterministic(folder, tmp_path):
    again = make_tiny_stable_diffusion(tmp_path / "again")
    other = make_tiny_stable_diffusion(tmp_path / "other", seed=1)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (again / weights).read_bytes() == (folder / weights).read_bytes() != (other / weights).read_bytes()
