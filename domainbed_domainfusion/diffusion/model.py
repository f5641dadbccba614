"""The frozen latent diffusion model (LDM) φ: the one adapter between diffusers and everything else.

Images are (B, 3, S, S) in [-1, 1]. Latents are (B, C, S / f, S / f) and already multiplied by the VAE's scaling factor.
"""

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError
from ..seeding import preserved_rng
from .dual import TensorOrDual
from .evaluations import COUNT
from .source import check_scheduler, config_folder, resolve_source, resolve_tiny_half, tokenizer_folder

if TYPE_CHECKING:
    from .tiny_encoder import TinyEncoder

__all__ = ["LatentDiffusion", "resolve_source"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "lcm": "LCMScheduler",
}
SCHEDULER_OPTIONS: dict[str, dict[str, Any]] = {
    "pndm": {"skip_prk_steps": True},
    "dpmsolver++": {"algorithm_type": "dpmsolver++"},
}
#: Pixels decoded at once, to bound the memory: ten 320x320 images. A processor is fastest on what its caches hold.
DECODER_SLICE = {"cpu": 2**15, "cuda": 2**20}

_loaded: dict[tuple, "LatentDiffusion"] = {}  # the models of this process by the arguments of `load`


class LatentDiffusion:
    """A Stable Diffusion 1.x or 2.x model, frozen, in eval mode, shared by everything in the process.

    It is not an `nn.Module`. A module that holds it as an attribute has therefore none of its weights in its state_dict
    and parameters. `copy.deepcopy` returns the same object, and a pickle holds only the arguments of `load`.
    `posterior`, `encode`, `predict` and `predict_noise` return a `forward_mode.Dual` if they get one for a tensor.
    """

    def __init__(
        self, path: Path, source: str, device: torch.device, dtype: str, revision: str | None, decoder: str | None
    ) -> None:
        """Use `LatentDiffusion.load`: it keeps one model per process."""
        from . import loading  # here, because diffusers and transformers take seconds to import

        self.source, self.device, self.dtype, self.revision = source, device, DTYPES[dtype], revision
        self._path, self._arguments = path, (source, str(device), dtype, revision, decoder)
        self._unet, self._vae = (part.to(device) for part in loading.unet_and_vae(path, self.dtype))
        self._decoder = self._vae
        if decoder is not None:
            folder = resolve_tiny_half(decoder, path, "decoder")
            self._decoder = loading.tiny_half(folder, "decoder", self.dtype).to(device)
        if device.type == "cpu":  # on a GPU, eager normalisation undoes it at every layer; see `compile`
            self._channels_last()
        scheduler = config_folder(path) / "scheduler" / "scheduler_config.json"
        self._scheduler_config = json.loads(scheduler.read_text("utf-8"))
        self._text_encoder: tuple | None = None  # (tokenizer, encoder), read at the first `embed`
        self._compiled: dict = {}  # see `compile`
        self._uses_cuda_graphs = False
        self.alphas_cumprod = self.scheduler("ddim").alphas_cumprod.to(device)  # ᾱ_t, (T,) float32
        self.num_train_timesteps = len(self.alphas_cumprod)
        self.predicts_v: bool = self._scheduler_config.get("prediction_type") == "v_prediction"
        self.scaling_factor: float = self._vae.config.scaling_factor
        self.scale_factor: int = 2 ** (len(self._vae.config.block_out_channels) - 1)  # pixels per latent
        self.latent_channels: int = self._vae.config.latent_channels
        self.embeds_guidance: bool = self._unet.config.time_cond_proj_dim is not None  # a latent consistency model

    @classmethod
    def load(
        cls,
        source: str,
        *,
        device: torch.device | str,
        dtype: str = "float32",
        revision: str | None = None,
        decoder: str | None = None,
    ) -> "LatentDiffusion":
        """The model from a hub id, a local folder or a single .safetensors file; one load per process.

        device: anything `torch.device` takes; dtype: float32, float16, bfloat16 or float64; decoder: folder or hub id
        of an AutoencoderTiny that `decode` uses instead of the VAE.
        Raises InputError as `source.resolve_source` does.
        """
        if dtype not in DTYPES:
            raise InputError(f"The LDM's dtype {dtype} is unknown: use one of {', '.join(DTYPES)}.")
        path = resolve_source(source, revision)
        device = _indexed(torch.device(device))
        key = (str(path), revision, dtype, device, decoder)
        if key not in _loaded:
            with preserved_rng():  # older diffusers initialise the networks at random before they read the weights
                _loaded[key] = cls(path, source, device, dtype, revision, decoder)
        return _loaded[key]

    def __deepcopy__(self, memo: dict) -> "LatentDiffusion":
        return self

    def __copy__(self) -> "LatentDiffusion":
        return self

    def __reduce__(self):
        return _load, self._arguments

    def trainable_unet(self) -> Any:
        """A copy of the U-Net whose weights take gradients, in float32, or in float64 if the model is."""
        unet = torch.nn.Module.to(copy.deepcopy(self._unet), torch.promote_types(self.dtype, torch.float32))
        return unet.requires_grad_(True)

    def with_unet(self, unet: Any) -> "LatentDiffusion":
        """The same model with this U-Net, frozen and in the model's dtype, and not compiled. All else is shared.

        A pickle of it would hold the original's arguments, without the U-Net.
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._unet = torch.nn.Module.to(unet, self.dtype).eval().requires_grad_(False)
        other._compiled = {name: call for name, call in self._compiled.items() if name != "unet"}
        return other

    def embed(self, prompts: list[str]) -> Tensor:
        """Text embeddings (n, L, D), as diffusers' pipeline makes them.

        Raises InputError for a prompt that is too long for the text encoder, and for two different prompts with the
        same tokens (the tokenizer does not know their words).
        """
        tokenizer, encoder = self._tokenizer_and_encoder()
        ids = tokenizer(
            prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        ).input_ids
        for prompt, tokens in zip(prompts, tokenizer(prompts).input_ids):
            if len(tokens) > tokenizer.model_max_length:
                raise InputError(
                    f"The prompt {prompt!r} has {len(tokens)} tokens but the text encoder of "
                    f"{self.source} reads {tokenizer.model_max_length}: shorten the template or the class "
                    "name."
                )
        seen: dict = {}
        for prompt, row in zip(prompts, ids.tolist()):
            other = seen.setdefault(tuple(row), prompt)
            if other != prompt:
                raise InputError(
                    f"The tokenizer of {self.source} does not know the words that tell {prompt!r} from "
                    f"{other!r}: use other class names, another prompt template or another LDM."
                )
        with torch.no_grad():
            return encoder(ids.to(self.device))[0].to(self.dtype)

    def drop_text_encoder(self) -> None:
        """Free the text encoder's memory; a later `embed` reads it again."""
        self._text_encoder = None

    def posterior(self, images: TensorOrDual) -> Any:
        """The VAE's diagonal Gaussian (mean, std, sample) over unscaled latents; differentiable in images."""
        return self._vae.encode(images.to(self.device, self.dtype)).latent_dist

    def tiny_encoder(self, source: str) -> "TinyEncoder":
        """The encoder of an AutoencoderTiny that makes this model's latents, on its device and in its dtype.

        source: a folder or hub id. Raises InputError as `source.resolve_tiny_half` does.
        """
        from .tiny_encoder import TinyEncoder

        return TinyEncoder.load(resolve_tiny_half(source, self._path, "encoder"), self.device, self.dtype)

    def encode(self, images: TensorOrDual) -> TensorOrDual:
        """Scaled latents z: the posterior's mean times the scaling factor; differentiable in images."""
        return self.posterior(images).mean * self.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents -> images, float32, clamped to [-1, 1]; decoded in slices to bound the memory."""
        pixels = latents[0, 0].numel() * self.scale_factor**2
        slices = latents.to(self.device, self.dtype).split(
            max(1, DECODER_SLICE.get(self.device.type, DECODER_SLICE["cuda"]) // pixels)
        )
        decode = self._compiled.get("decode", self._decoder.decode)
        images = [self._own_copy(decode(part / self._decoder.config.scaling_factor).sample) for part in slices]
        return torch.cat(images).float().clamp(-1, 1)

    def predict_noise(
        self, latents: TensorOrDual, timesteps: Tensor, embeddings: Tensor, guidance_scale: float = 1.0
    ) -> TensorOrDual:
        """ε_φ(z_t, t, c) of any model; arguments as for `predict`."""
        return self.as_noise(self.predict(latents, timesteps, embeddings, guidance_scale), latents, timesteps)

    def as_noise(self, predicted: TensorOrDual, latents: TensorOrDual, timesteps: Tensor) -> TensorOrDual:
        """ε_φ from what `predict` returned for z_t: itself, or √(1 − ᾱ_t) z_t + √ᾱ_t v, in float32 at least."""
        if not self.predicts_v:
            return predicted
        precision = torch.promote_types(self.dtype, torch.float32)
        alphas = self.alphas_cumprod.to(precision)[timesteps.to(self.device).long()][:, None, None, None]
        latents, predicted = latents.to(self.device, precision), predicted.to(precision)
        return (1 - alphas).sqrt() * latents + alphas.sqrt() * predicted

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What `predict` should return for z_t = √ᾱ_t z + √(1 − ᾱ_t) ε: ε, or v = √ᾱ_t ε − √(1 − ᾱ_t) z."""
        if not self.predicts_v:
            return noise
        alphas = self.alphas_cumprod.to(latents.dtype)[timesteps][:, None, None, None]
        return alphas.sqrt() * noise - (1 - alphas).sqrt() * latents

    def predict(
        self, latents: TensorOrDual, timesteps: Tensor, embeddings: Tensor, guidance_scale: float = 1.0
    ) -> TensorOrDual:
        """The U-Net's own prediction for z_t, which the schedulers take: ε_φ, or v_φ if the model `predicts_v`.

        latents (B, C, h, w), timesteps (B,), embeddings (B, L, D); differentiable in latents.
        guidance_scale: only for a U-Net that takes it as a condition (`embeds_guidance`); 1 means no guidance.
        """
        differentiated = not isinstance(latents, Tensor) or torch.is_grad_enabled()
        COUNT.add(len(timesteps))
        unet = self._unet if differentiated else self._compiled.get("unet", self._unet)
        predicted = unet(
            latents.to(self.device, self.dtype),
            timesteps.to(self.device),
            encoder_hidden_states=embeddings.to(self.device, self.dtype),
            timestep_cond=self.guidance_embedding(guidance_scale),
        ).sample
        return predicted if differentiated else self._own_copy(predicted)

    def compile(self, cuda_graphs: bool = False, backend: str = "inductor") -> None:
        """From now on run the U-Net and the decoder compiled by `torch.compile`, except where a gradient is computed.

        The first batch of every shape is compiled, which takes minutes for a full-size model.
        cuda_graphs: replay each shape's kernels as one CUDA graph. Launching them then takes no time.
        Raises InputError for CUDA graphs without a GPU.
        """
        if cuda_graphs and self.device.type != "cuda":
            raise InputError(
                'The hparam ldm_compile is "cuda_graphs", but the diffusion model runs on the '
                f"{self.device.type.upper()}: set it to true or false."
            )
        if not self._compiled:
            self._channels_last()
            mode = "reduce-overhead" if cuda_graphs else None  # torch's name for CUDA graphs
            self._compiled = {
                "unet": torch.compile(self._unet, backend=backend, mode=mode),
                "decode": torch.compile(self._decoder.decode, backend=backend, mode=mode),
            }
            self._uses_cuda_graphs = cuda_graphs

    @property
    def is_compiled(self) -> bool:
        """Whether `compile` has been called."""
        return bool(self._compiled)

    def scheduler(self, name: str, timestep_spacing: str = "leading") -> Any:
        """A fresh diffusers scheduler with the model's noise schedule: ddim, pndm, dpmsolver++, lcm, or "folder".

        timestep_spacing: "leading" is Stable Diffusion 1.x's own; "trailing" is from Lin et al. 2024. With few steps,
        "leading" starts at less noise than the strength names, "trailing" does not.
        As in diffusers' pipeline, latents are not clipped to [-1, 1] and timesteps are shifted by one (steps_offset).
        """
        import diffusers

        if name not in (*SCHEDULERS, "folder"):
            raise InputError(f"The scheduler {name} is unknown: use one of {', '.join(SCHEDULERS)}, folder.")
        check_scheduler(name, self._path)
        kind = SCHEDULERS.get(name, self._scheduler_config["_class_name"])
        config = {
            **self._scheduler_config,
            **SCHEDULER_OPTIONS.get(name, {}),
            "steps_offset": 1,
            "clip_sample": False,
            "timestep_spacing": timestep_spacing,
        }
        return getattr(diffusers, kind).from_config(config)

    def check_image_size(self, size: int) -> None:
        """Raise InputError unless size x size pixels are a whole number of latents, enough for every U-Net level."""
        step = self.scale_factor
        smallest = step * 2 ** (len(self._unet.config.block_out_channels) - 1)
        if size % step or size < smallest:
            below = max(smallest, size // step * step)
            sizes = " or ".join(str(near) for near in dict.fromkeys([below, max(smallest, -(-size // step) * step)]))
            raise InputError(
                f"An image size of {size} does not fit {self.source}, which needs a multiple of {step} "
                f"pixels from {smallest} on: use {sizes}."
            )

    def _channels_last(self) -> None:
        """Store the weights with the channels innermost: convolutions are faster so, and activations follow."""
        for network in (self._unet, self._vae, self._decoder):
            network.to(memory_format=torch.channels_last)

    def _own_copy(self, result: Any) -> Any:
        """A copy if CUDA graphs run: the next replay overwrites `result`, and callers still need it then."""
        return result.clone() if self._uses_cuda_graphs else result

    def guidance_embedding(self, scale: float) -> Tensor | None:
        """The embedding (1, D) of a guidance scale, as diffusers' pipeline makes it; None if the U-Net takes none."""
        if not self.embeds_guidance:
            return None
        from diffusers import StableDiffusionImg2ImgPipeline

        width = self._unet.config.time_cond_proj_dim
        embedding = StableDiffusionImg2ImgPipeline.get_guidance_scale_embedding(None, torch.tensor([scale - 1]), width)
        return embedding.to(self.device, self.dtype)

    def _tokenizer_and_encoder(self) -> tuple:
        """Both, read at the first call and after `drop_text_encoder`."""
        if self._text_encoder is None:
            from transformers import CLIPTokenizer

            from . import loading

            tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder(self._path), local_files_only=True)
            with preserved_rng():  # as in `load`
                self._text_encoder = tokenizer, loading.text_encoder(self._path, self.dtype).to(self.device)
        return self._text_encoder


def _load(source: str, device: str, dtype: str, revision: str | None, decoder: str | None) -> LatentDiffusion:
    return LatentDiffusion.load(source, device=device, dtype=dtype, revision=revision, decoder=decoder)


def _indexed(device: torch.device) -> torch.device:
    """The device with its index, so that "cuda" and "cuda:0" are loaded once."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
