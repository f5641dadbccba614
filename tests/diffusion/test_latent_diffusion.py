"""Loading, sharing and using the frozen LDM; every way a folder can be wrong, with its sentence."""

import copy
import json
import pickle
import shutil
import subprocess
import sys

import huggingface_hub.constants
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

CURE = "use one that has it, such as CompVis/stable-diffusion-v1-4."
FETCH = "fetch it again, or give a folder in diffusers' layout of Stable Diffusion 1.x and 2.x."


@pytest.fixture
def broken(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "ldm")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def sentence_of(source):
    with pytest.raises(InputError) as error:
        resolve_source(str(source))
    sentence = str(error.value)
    assert "\n" not in sentence
    with pytest.raises(InputError):
        LatentDiffusion.load(str(source), device="cpu")
    return sentence


@pytest.mark.parametrize(
    "missing",
    [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
    ],
)
def test_an_incomplete_folder_names_what_is_missing(broken, missing):
    (broken / missing).unlink()
    assert sentence_of(broken) == f"The latent diffusion model in {broken} is incomplete, {missing} is missing: {FETCH}"


def test_a_tokenizer_without_vocabulary(broken):
    for name in ("tokenizer.json", "vocab.json"):
        (broken / "tokenizer" / name).unlink(missing_ok=True)
    assert "is incomplete, tokenizer/vocab.json is missing" in sentence_of(broken)


@pytest.mark.parametrize(
    "file, changes, reason",
    [
        ("model_index.json", {"text_encoder_2": ["transformers", "X"]}, "it has a text_encoder_2 (SDXL)"),
        ("model_index.json", {"transformer": ["diffusers", "X"]}, "it has a transformer (a transformer, not a U-Net)"),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "sample"},
            "it predicts sample, neither epsilon nor v_prediction",
        ),
        (
            "scheduler/scheduler_config.json",
            {"rescale_betas_zero_snr": True},
            "nothing of the image is left at its last timestep (rescale_betas_zero_snr)",
        ),
        (
            "unet/config.json",
            {"cross_attention_dim": 768},
            "its U-Net attends to 768-dimensional text but the text encoder gives 16",
        ),
        (
            "unet/config.json",
            {"in_channels": 9},
            "its U-Net maps 9 to 4 channels where the VAE has 4 (an inpainting or depth model?)",
        ),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "its U-Net takes more conditions than the text"),
        ("unet/config.json", {"_class_name": "UNet3DConditionModel"}, "its U-Net is a UNet3DConditionModel"),
        ("vae/config.json", {"_class_name": "VQModel"}, "its VAE is a VQModel, not an AutoencoderKL"),
    ],
)
def test_another_layout_is_refused_with_the_reason(broken, file, changes, reason):
    edit(broken / file, **changes)
    assert sentence_of(broken) == (
        f"The model in {broken} does not have the layout of Stable Diffusion 1.x and 2.x: {reason}; {CURE}"
    )


def test_pickled_weights_are_never_read(broken):
    (broken / "unet" / "diffusion_pytorch_model.safetensors").rename(broken / "unet" / "diffusion_pytorch_model.bin")
    assert sentence_of(broken) == (
        f"{broken}/unet has only pickled weights (diffusion_pytorch_model.bin), which are never read: save the model "
        "again as safetensors (save_pretrained with safe_serialization=True)."
    )


def refused_at_loading(source):
    """The sentence of a model whose files are whole and do not belong together: it is found before a weight is read."""
    with pytest.raises(InputError) as error:
        model = LatentDiffusion.load(str(source), device="cpu")
        model.embed(["a photo of a cat"])
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "index",
    [
        {"weight_map": {"conv_in.weight": "../../../../etc/passwd"}},
        {"weight_map": {"conv_in.weight": "/etc/shard.safetensors"}},
        {"weight_map": {"conv_in.weight": "..safetensors"}},
        {"weight_map": {"conv_in.weight": "shard.bin"}},
        {"weight_map": {"conv_in.weight": 3}},
        {"weight_map": ["a.safetensors"]},
        {"weight_map": None},
        ["weight_map"],
    ],
)
def test_an_index_that_leads_out_of_its_folder_is_refused(broken, index):
    path = broken / "unet" / "diffusion_pytorch_model.safetensors.index.json"
    path.write_text(json.dumps(index))
    assert sentence_of(broken) == (
        f"{path} does not name safetensors files beside it: do not use this model, or fetch it again from a source "
        "that you trust."
    )


@pytest.mark.parametrize(
    "file, changes, sentence",
    [
        ("unet/config.json", {"block_out_channels": [16, 64]}, "The weight down_blocks.1."),
        ("unet/config.json", {"block_out_channels": [2**20, 2**20]}, "The weight conv_in."),
        ("unet/config.json", {"block_out_channels": [2**40, 2**41]}, "{}/unet/config.json describes no network"),
        ("vae/config.json", {"block_out_channels": [8, 8, 2**20]}, "The weight "),
        ("text_encoder/config.json", {"vocab_size": 2**40}, "The weight "),
        ("vae/config.json", {"layers_per_block": 9}, "The files in {}/vae have "),
        ("unet/config.json", {"down_block_types": ["Evil", "DownBlock2D"]}, "{}/unet/config.json describes no network"),
    ],
)
def test_weights_that_do_not_fit_their_config_are_refused_before_anything_is_allocated(broken, file, changes, sentence):
    edit(broken / file, **changes)
    assert sentence.format(broken) in refused_at_loading(broken)


def test_code_in_a_models_folder_is_never_run(broken):
    """Neither a module beside the weights nor one that a config names, as the libraries' remote code does."""
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler", "."):
        for name in ("evil.py", "pipeline.py", "__init__.py", "modeling_evil.py"):
            (broken / part / name).write_text("raise SystemExit('this ran')")
    remote = {"AutoModel": "modeling_evil.Evil", "AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    for file in ("unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"):
        edit(broken / file, auto_map=remote, custom_pipeline="evil")
    edit(broken / "model_index.json", _class_name=["pipeline", "Evil"], unet=["evil", "Evil"])
    model = LatentDiffusion.load(str(broken), device="cpu")
    assert len(model.embed(["a photo of a cat"])) == 1
    assert not [name for name in sys.modules if "evil" in name]


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"])
def test_a_file_that_is_no_safetensors(broken, content):
    path = broken / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(content)
    assert sentence_of(broken) == f"{path} is damaged or only partly downloaded: delete it and fetch it again."


def test_a_download_that_broke_off(broken):
    path = broken / "vae" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert sentence_of(broken) == f"{path} is damaged or only partly downloaded: delete it and fetch it again."


def test_a_config_that_is_no_json(broken):
    (broken / "unet" / "config.json").write_text("{")
    assert sentence_of(broken).startswith(f"{broken}/unet/config.json is not valid JSON")


def test_a_folder_that_does_not_exist(tmp_path):
    assert sentence_of(tmp_path / "nothing") == (
        f"The latent diffusion model {tmp_path}/nothing does not exist: give an existing folder of a Stable Diffusion "
        "1.x or 2.x in diffusers' layout, a .safetensors checkpoint, or a hub id such as CompVis/stable-diffusion-v1-4."
    )


def test_a_hub_id_without_a_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    sentence = sentence_of("somebody/some-model")
    assert sentence.startswith(
        "The latent diffusion model somebody/some-model is neither a folder here nor in the "
        "hub's cache and could not be downloaded ("
    )
    assert sentence.endswith("): run once with a network and without HF_HUB_OFFLINE, or give a local folder.")


def test_a_hub_id_in_the_cache_needs_no_network(monkeypatch, folder, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path / "models--somebody--some-model"
    snapshot = shutil.copytree(folder, cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    from huggingface_hub import snapshot_download

    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda *a, **options: snapshot_download(*a, **options, cache_dir=tmp_path)
    )
    assert resolve_source("somebody/some-model") == snapshot.resolve()
    with pytest.raises(InputError, match="could not be downloaded"):
        resolve_source("somebody/some-model", revision="other")


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
