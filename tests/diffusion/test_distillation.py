"""Latent Distillation against Algorithm 2 written out in float64 with diffusers' modules and autograd."""

from dataclasses import dataclass

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import CLIPTextModel, CLIPTokenizer

from domainbed_domainfusion.diffusion.corruption import corrupt
from domainbed_domainfusion.diffusion.distillation import LatentDistillation, surrogate
from domainbed_domainfusion.diffusion.draws import Draws
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.seeding import generator_of

from .conftest import CLASS_NAMES

CONFIDENCE = torch.tensor([0.3, 0.75, 0.99])
SEEDS = [11, 12, 13]


@dataclass(frozen=True)
class Reading:
    """One reading of Algorithm 2; the defaults are the hparams'."""

    draws: int = 1
    weighting: str = "uniform"
    corruption: str = "contrast"
    guidance_scale: float = 1.0
    reduction: str = "mean"
    timesteps: tuple[float, float] = (0.0, 1.0)
    antithetic: bool = False


class Algorithm2:
    """One image at a time, in float64."""

    def __init__(self, folder):
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float64).eval()
        self.vae = AutoencoderKL.from_pretrained(folder / "vae", torch_dtype=torch.float64).eval()
        tokens = CLIPTokenizer.from_pretrained(folder / "tokenizer")(
            [*(f"a photo of a {name}" for name in CLASS_NAMES), ""], padding="max_length", return_tensors="pt"
        ).input_ids
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()(tokens)[0].detach().double()
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.alphas_cumprod = (1 - betas).cumprod(0)
        self.results: dict = {}

    def latent(self, x, p, corruption, seed):
        x = corrupt(x[None].double(), p[None], corruption, [generator_of(seed, "corruption")])
        return self.vae.encode(x).latent_dist.mode() * 0.4

    def draws(self, seed, reading):
        generator, noise = torch.Generator().manual_seed(seed), torch.empty(0)
        low, high = (round(1000 * share) for share in reading.timesteps)
        for i in range(reading.draws):
            if reading.antithetic and i % 2 == 1:
                noise = -noise
            else:
                t = torch.randint(low, high, (), generator=generator)
                noise = torch.randn(4, 8, 8, generator=generator).double()[None]
            yield t, noise

    def weight(self, t, weighting):
        alpha = self.alphas_cumprod[t]
        return {"uniform": 1.0, "one_minus_alpha_bar": 1 - alpha, "snr": alpha / (1 - alpha)}[weighting]

    def predictions(self, z, t, noise, y):
        """Under the class's prompt, and under the empty one."""
        alpha = self.alphas_cumprod[t]
        z_t = alpha.sqrt() * z + (1 - alpha).sqrt() * noise
        return [self.unet(z_t, t, encoder_hidden_states=self.text[k][None]).sample for k in (y, -1)]

    def residual(self, z, t, noise, y, scale):
        conditional, unconditional = self.predictions(z, t, noise, y)
        return unconditional + scale * (conditional - unconditional) - noise

    def value(self, x, y, p, seed, reading):
        z = self.latent(x, p, reading.corruption, seed)
        total = 0
        for t, noise in self.draws(seed, reading):
            squares = self.residual(z, t, noise, y, reading.guidance_scale) ** 2
            total += self.weight(t, reading.weighting) * getattr(squares, reading.reduction)()
        return total / reading.draws

    def score(self, x, y, p, seed, reading, gradient):
        """The forms without the U-Net's Jacobian."""
        z = self.latent(x, p, reading.corruption, seed).detach()
        with sdpa_kernel(SDPBackend.MATH):  # the others have no derivative of the derivative
            _, slope = torch.autograd.functional.jvp(lambda q: self.latent(x, q, reading.corruption, seed), p)
        total = 0
        for t, noise in self.draws(seed, reading):
            if gradient == "sds":
                along = self.residual(z, t, noise, y, reading.guidance_scale).detach()
            else:
                conditional, unconditional = self.predictions(z, t, noise, y)
                along = (reading.guidance_scale * (conditional - unconditional)).detach()
            products = along * self.alphas_cumprod[t].sqrt() * slope
            total += self.weight(t, reading.weighting) * getattr(products, reading.reduction)()
        return total / reading.draws


@pytest.fixture(scope="module")
def algorithm2(folder):
    return Algorithm2(folder)


def reference(algorithm2, images, labels, gradient, reading):
    """Both gradient modes are compared with the same numbers."""
    if (gradient, reading) not in algorithm2.results:
        algorithm2.results[gradient, reading] = compute_reference(algorithm2, images, labels, gradient, reading)
    return algorithm2.results[gradient, reading]


def compute_reference(algorithm2, images, labels, gradient, reading):
    values, slopes = [], []
    for x, y, p, seed in zip(images, labels, CONFIDENCE.double(), SEEDS):
        p.requires_grad_()
        value = algorithm2.value(x, y, p, seed, reading)
        values.append(value.detach())
        slopes.append(
            torch.autograd.grad(value, p)[0]
            if gradient == "full"
            else algorithm2.score(x, y, p.detach(), seed, reading, gradient)
        )
    return torch.stack(values), torch.stack(slopes)


def relative(ours, theirs):
    return ((ours.double() - theirs).norm() / theirs.norm()).item()


READINGS = [
    Reading(),
    Reading(draws=3, weighting="one_minus_alpha_bar"),
    Reading(draws=2, weighting="snr", corruption="blur"),
    Reading(draws=2, corruption="pepper"),
    Reading(corruption="mask"),
    Reading(reduction="sum"),
    Reading(timesteps=(0.02, 0.98), draws=2),
    Reading(guidance_scale=7.5),
    Reading(guidance_scale=0.0),
    Reading(2, "one_minus_alpha_bar", "contrast", 7.5, "sum", (0.02, 0.98)),
    Reading(draws=4, antithetic=True),
]


@pytest.mark.parametrize("gradient_mode", ["forward", "reverse"])
@pytest.mark.parametrize("gradient", ["full", "sds", "guidance"])
@pytest.mark.parametrize("reading", READINGS, ids=str)
def test_value_and_gradient_are_algorithm_2s(
    ldm, prompts, algorithm2, images, labels, gradient_mode, gradient, reading
):
    values, slopes = reference(algorithm2, images, labels, gradient, reading)
    ours = LatentDistillation(ldm, prompts, gradient=gradient, gradient_mode=gradient_mode, **vars(reading))
    value, slope = ours.coefficients(images, labels, CONFIDENCE, SEEDS)
    assert not value.requires_grad and not slope.requires_grad
    assert relative(value, values) < 1e-5
    if slopes.norm() == 0:
        assert slope.abs().max() == 0
    else:  # "guidance" is a difference of two nearly equal predictions, which costs float32 a digit
        assert relative(slope, slopes) < (1e-3 if gradient == "guidance" else 1e-4)


@pytest.mark.parametrize("gradient", ["full", "sds", "guidance"])
def test_in_float64_the_two_agree_to_rounding(folder, algorithm2, images, labels, gradient):
    ldm = LatentDiffusion.load(str(folder), device="cpu", dtype="float64")
    reading = Reading(2, "snr", guidance_scale=3.0)
    ours = LatentDistillation(ldm, Prompts(ldm, CLASS_NAMES), gradient=gradient, **vars(reading))
    value, slope = ours.coefficients(images, labels, CONFIDENCE.double(), SEEDS)
    values, slopes = reference(algorithm2, images, labels, gradient, reading)
    # text embeddings in float32 there and float64 here, ᾱ in float32 here: 1e-6 of relative difference
    assert relative(value, values) < 1e-6 and relative(slope, slopes) < 1e-4


def test_pairs_need_an_even_number_of_draws(ldm, prompts):
    with pytest.raises(InputError) as error:
        LatentDistillation(ldm, prompts, draws=3, antithetic=True)
    assert str(error.value) == "ld_antithetic makes pairs of draws, and ld_draws is 3: give an even number."


def test_the_strata_of_pairs_are_those_of_half_as_many_draws(ldm, prompts):
    """Both of a pair have the t that one of the single draws has."""
    draws = [Draws(seed, (i, 3)) for i, seed in enumerate(SEEDS)]
    latents = torch.zeros(3, 4, 8, 8)
    t, noise = LatentDistillation(ldm, prompts, draws=4, antithetic=True)._draw(latents, draws)
    single, one = LatentDistillation(ldm, prompts, draws=2)._draw(latents, draws)
    assert torch.equal(t, single.repeat_interleave(2, 0))
    assert torch.equal(noise[::2], one) and torch.equal(noise[1::2], -one)
    assert (single.flatten() * 6 // 1000).tolist() == [0, 1, 2, 3, 4, 5]


def test_guided_score_distillation_is_the_unconditional_one_and_the_guidance(ldm, prompts, images, labels):
    """ε̂ − ε = (ε_u − ε) + s (ε_c − ε_u), so the coefficients add up."""

    def slope(gradient, scale):
        ours = LatentDistillation(ldm, prompts, 2, gradient=gradient, guidance_scale=scale)
        return ours.coefficients(images, labels, CONFIDENCE, SEEDS)[1]

    together = slope("sds", 0.0) + slope("guidance", 5.0)
    torch.testing.assert_close(slope("sds", 5.0), together, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(slope("guidance", 5.0), 5 * slope("guidance", 1.0), rtol=1e-4, atol=1e-7)


def test_guidance_alone_is_blind_to_the_class_where_all_prompts_are_the_same(ldm, images, labels):
    same = Prompts(ldm, CLASS_NAMES)
    same.conditional = same.unconditional.expand_as(same.conditional)
    _, slope = LatentDistillation(ldm, same, gradient="guidance").coefficients(images, labels, CONFIDENCE, SEEDS)
    assert slope.abs().max() < 1e-6


def test_the_next_classes_prompts_are_those_of_the_next_labels(ldm, prompts, images, labels):
    """Two results, of which one is the other for shifted labels; the last class comes before the first."""
    options = {"gradient": "full", "guidance_scale": 3.0}
    p, seeds = torch.tensor([0.2, 0.5, 0.9]), [1, 2, 3]
    shifted = LatentDistillation(ldm, prompts, next_class=True, **options).coefficients(images, labels, p, seeds)
    plain = LatentDistillation(ldm, prompts, **options)
    expected = plain.coefficients(images, torch.tensor([(int(y) + 1) % 3 for y in labels]), p, seeds)
    assert all(torch.equal(*pair) for pair in zip(shifted, expected))
    assert not torch.equal(shifted[1], plain.coefficients(images, labels, p, seeds)[1])


def test_stratified_timesteps_cover_the_range_once(ldm, prompts, images, labels):
    """Each of B · T equal parts of the range holds one t, and micro-batches change nothing."""
    seen, predict = [], ldm.predict_noise

    class Recording:
        def __getattr__(self, name):
            return getattr(ldm, name)

        def predict_noise(self, latents, t, *rest):
            seen.extend(t.tolist())
            return predict(latents, t, *rest)

    options = {"draws": 4, "timesteps": (0.2, 0.8), "micro_batch": 2}
    ours = LatentDistillation(Recording(), prompts, **options)
    ours.coefficients(images, labels, CONFIDENCE, SEEDS, stratified=True)
    assert sorted((t - 200) // 50 for t in seen) == list(range(12))
    whole = LatentDistillation(ldm, prompts, **{**options, "micro_batch": 3})
    for a, b in zip(
        ours.coefficients(images, labels, CONFIDENCE, SEEDS, stratified=True),
        whole.coefficients(images, labels, CONFIDENCE, SEEDS, stratified=True),
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("timesteps", [(0.5, 0.5), (0.8, 0.2), (-0.1, 1.0), (0.0, 1.5)])
def test_a_range_without_a_timestep_is_refused(ldm, prompts, timesteps):
    with pytest.raises(ValueError, match="two rising shares"):
        LatentDistillation(ldm, prompts, timesteps=timesteps)


def test_full_is_the_slope_of_the_value(folder, images, labels):
    """By central differences, without autograd."""
    ldm = LatentDiffusion.load(str(folder), device="cpu", dtype="float64")
    ours = LatentDistillation(ldm, Prompts(ldm, CLASS_NAMES), 2, gradient="full")
    p = CONFIDENCE.double()
    _, slope = ours.coefficients(images, labels, p, SEEDS)
    above, below = (ours.coefficients(images, labels, p + step, SEEDS)[0] for step in (1e-5, -1e-5))
    assert torch.allclose(slope, (above - below) / 2e-5, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("gradient", ["full", "sds"])
def test_the_classifier_gets_the_mean_of_a_times_the_slope_of_p(ldm, prompts, images, labels, gradient):
    classifier = torch.nn.Linear(3 * 32 * 32, 3)
    p = classifier(images.flatten(1)).softmax(-1).gather(1, labels[:, None]).squeeze(1)
    ours = LatentDistillation(ldm, prompts, gradient=gradient)
    value, slope = ours.coefficients(images, labels, p.detach(), SEEDS)
    loss = surrogate(value, slope, p)
    assert loss.shape == () and loss.item() == pytest.approx(value.mean().item(), rel=1e-6)
    loss.backward(retain_graph=True)
    expected = sum(slope[i] * torch.autograd.grad(p[i], classifier.weight, retain_graph=True)[0] for i in range(3)) / 3
    assert slope.abs().max() > 1e-5
    assert relative(classifier.weight.grad, expected.double()) < 1e-5


def test_results_do_not_depend_on_the_batch(ldm, prompts, images, labels):
    options = {"draws": 2, "gradient": "full", "corruption": "mask"}
    value, slope = LatentDistillation(ldm, prompts, **options).coefficients(images, labels, CONFIDENCE, SEEDS)
    for micro_batch in (1, 2):
        parts = LatentDistillation(ldm, prompts, **options, micro_batch=micro_batch).coefficients(
            images, labels, CONFIDENCE, SEEDS
        )
        assert torch.allclose(parts[0], value, rtol=1e-5) and torch.allclose(parts[1], slope, rtol=1e-3, atol=1e-6)
    order = torch.tensor([2, 0, 1])
    mixed = LatentDistillation(ldm, prompts, **options).coefficients(
        images[order], labels[order], CONFIDENCE[order], [SEEDS[i] for i in order]
    )
    assert torch.allclose(mixed[0], value[order], rtol=1e-5)


@pytest.mark.parametrize("gradient_mode", ["forward", "reverse"])
def test_without_corruption_there_is_a_value_and_no_gradient(ldm, prompts, images, labels, gradient_mode):
    ours = LatentDistillation(ldm, prompts, corruption="none", gradient_mode=gradient_mode)
    value, slope = ours.coefficients(images, labels, CONFIDENCE, SEEDS)
    assert value.min() > 0.5 and slope.abs().max() == 0


def test_noise_residual_is_the_one_the_loss_squares(ldm, prompts, images, labels):
    ours = LatentDistillation(ldm, prompts)
    residual = ours.noise_residual(images, labels, CONFIDENCE, SEEDS)
    value, _ = ours.coefficients(images, labels, CONFIDENCE, SEEDS)
    assert residual.shape == (3, 4, 8, 8)
    assert torch.allclose(residual.square().mean((1, 2, 3)), value, rtol=1e-5)


def test_the_residuals_of_all_draws_give_the_loss_under_every_weighting(ldm, prompts, images, labels):
    for weighting in ("uniform", "one_minus_alpha_bar", "snr"):
        ours = LatentDistillation(ldm, prompts, draws=3, weighting=weighting)
        residuals, value = ours.noise_residuals(images, labels, CONFIDENCE, SEEDS)
        assert residuals.shape == (3, 3, 4, 8, 8)
        assert torch.allclose(value, ours.coefficients(images, labels, CONFIDENCE, SEEDS)[0], rtol=1e-5)
        assert torch.equal(residuals.mean(0), ours.noise_residual(images, labels, CONFIDENCE, SEEDS))


def test_unknown_choices_are_named(ldm, prompts):
    with pytest.raises(ValueError, match="weighting 'cosine' is not one of uniform, one_minus_alpha_bar, snr"):
        LatentDistillation(ldm, prompts, weighting="cosine")
