"""DeepCache against diffusers' pipeline whose U-Net runs in full, with the deep features of an earlier step put in."""

import diffusers
import pytest
import torch

from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.diffusion.evaluations import COUNT
from domainbed_domainfusion.diffusion.feature_reuse import FeatureReuse
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.errors import InputError
from tests.tiny_ldm import make_tiny_stable_diffusion

from .conftest import CLASS_NAMES
from .pipelines import SEEDS, reference

pytestmark = pytest.mark.filterwarnings("ignore:(?s).*clip_sample:FutureWarning", "ignore::DeprecationWarning")

#: The last block of a Stable Diffusion has attention, and that of the pocket model has none.
ENDS = {
    "attention": {},
    "no attention": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    },
}


@pytest.fixture(scope="module", params=ENDS)
def folder(request, tmp_path_factory):
    return make_tiny_stable_diffusion(tmp_path_factory.mktemp("ldm") / "tiny", **ENDS[request.param])


class PutIn:
    """A hook on the last ResNet: in every k-th call it keeps the deep channels, in the others it puts them in."""

    def __init__(self, unet, every):
        self.every, self.calls, self.kept = every, 0, None
        self.channels = unet.config.block_out_channels[0]
        unet.up_blocks[-1].resnets[-1].register_forward_pre_hook(self)

    def __call__(self, resnet, inputs):
        x, *rest = inputs
        if self.calls == self.every or (self.kept is not None and len(self.kept) != len(x)):
            self.calls = 0
        if self.calls == 0:
            self.kept = x[:, : -self.channels].clone()
        self.calls += 1
        return torch.cat([self.kept, x[:, -self.channels :]], 1), *rest


def samplers(folder, **options):
    ldm = LatentDiffusion.load(str(folder), device="cpu")
    return CandidateSampler(ldm, Prompts(ldm, CLASS_NAMES), timestep_spacing="trailing", **options)


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("every, guidance, interval", [(2, 7.5, 1.0), (3, 7.5, 1.0), (2, 1.0, 1.0), (3, 7.5, 0.4)])
def test_candidates_are_those_of_a_pipeline_with_the_features_put_in(
    folder, images, labels, scheduler, every, guidance, interval
):
    sampler = samplers(
        folder, steps=10, strength=0.8, guidance_scale=guidance, scheduler=scheduler, guidance_interval=interval,
        reuse_interval=every,
    )  # fmt: skip
    ours = sampler.sample(images, labels, SEEDS).latents
    whole = samplers(folder, steps=10, strength=0.8, guidance_scale=guidance, scheduler=scheduler).sample(
        images, labels, SEEDS
    )
    assert (ours - whole.latents).abs().max() > 1e-3
    guided = sampler.guided if interval < 1 else None
    for i, row in enumerate(SEEDS):
        for j, seed in enumerate(row):
            pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder, safety_checker=None)
            PutIn(pipeline.unet, every)
            theirs, _ = reference(
                pipeline, scheduler, images[i], f"a photo of a {CLASS_NAMES[labels[i]]}", seed, "latent", "trailing",
                guided, num_inference_steps=10, strength=0.8, guidance_scale=guidance,
            )  # fmt: skip
            assert (ours[i, j] - theirs).abs().max() < 5e-5


def test_in_float64_a_shallow_pass_is_the_rest_of_the_whole_one(folder):
    """With the same latents and timesteps the features are the right ones, so nothing is lost."""
    ldm = LatentDiffusion.load(str(folder), device="cpu", dtype="float64")
    z, t = torch.randn(3, 4, 8, 8, dtype=torch.float64), torch.tensor([0, 500, 999])
    c, reuse = ldm.embed(CLASS_NAMES), FeatureReuse(ldm, 2)
    before = COUNT.number
    whole, shallow, again = (reuse.predict(z, t, c) for _ in range(3))
    assert COUNT.number - before == 6  # two whole passes of three latents
    torch.testing.assert_close(shallow, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(whole, ldm.predict(z, t, c), rtol=0, atol=0)
    assert torch.equal(again, whole)
    other = reuse.predict(-z, t, c)
    assert not torch.equal(other, whole) and not torch.allclose(other, ldm.predict(-z, t, c), atol=1e-3)
    assert not ldm._unet.up_blocks[-1].resnets[-1]._forward_pre_hooks  # nothing stays on the shared model


def test_a_latent_consistency_model_keeps_its_guidance(tmp_path):
    folder = make_tiny_stable_diffusion(tmp_path, time_cond_proj_dim=8)
    ldm = LatentDiffusion.load(str(folder), device="cpu", dtype="float64")
    z, t, c = torch.randn(1, 4, 8, 8, dtype=torch.float64), torch.tensor([500]), ldm.embed(["dog"])
    reuse = FeatureReuse(ldm, 2)
    whole, shallow = (reuse.predict(z, t, c, 5.0) for _ in range(2))
    torch.testing.assert_close(shallow, whole, rtol=1e-12, atol=1e-12)


def test_a_candidate_does_not_depend_on_its_batch(folder, images, labels):
    whole = samplers(folder, steps=6, reuse_interval=2).sample(images, labels, SEEDS).latents
    alone = samplers(folder, steps=6, reuse_interval=2, batch_size=1).sample(images, labels, SEEDS).latents
    assert (alone - whole).abs().max() < 2e-5 * whole.abs().max()


def test_an_early_choice_between_shared_features_is_refused_and_elsewhere_changes_nothing(folder, images, labels):
    sampler = samplers(folder, steps=6, strength=1.0, reuse_interval=2)
    with pytest.raises(InputError) as error:
        sampler.check_early(3)
    assert str(error.value) == (
        "early_choice is 3, in the middle of the 2 steps that share features: choose another step, or set it to null."
    )
    sampler.check_early(4)
    begun = sampler.begin(images, labels, SEEDS, 4)
    whole = sampler.sample(images, labels, SEEDS).latents.flatten(0, 1)
    torch.testing.assert_close(sampler.finish(begun, torch.tensor([5, 0])), whole[[5, 0]], atol=2e-5, rtol=0)


def test_an_early_choice_after_the_end_of_guidance_counts_from_there(folder, images, labels):
    """Where guidance ends, a whole pass begins the next group of steps."""
    sampler = samplers(folder, steps=8, strength=1.0, guidance_interval=0.375, reuse_interval=2)
    assert sampler.guided == 3
    for steps in (2, 3, 5):
        sampler.check_early(steps)
        begun = sampler.begin(images, labels, SEEDS, steps)
        whole = sampler.sample(images, labels, SEEDS).latents.flatten(0, 1)
        torch.testing.assert_close(sampler.finish(begun, torch.tensor([5, 0])), whole[[5, 0]], atol=2e-5, rtol=0)
    for steps in (1, 4):
        with pytest.raises(InputError, match="in the middle of the 2 steps that share features"):
            sampler.check_early(steps)


def test_a_compiled_model_is_refused(folder, monkeypatch):
    ldm = LatentDiffusion.load(str(folder), device="cpu")
    monkeypatch.setattr(ldm, "_compiled", {"unet": ldm._unet})
    with pytest.raises(InputError, match="reuse_interval runs parts of the U-Net, which ldm_compile cannot: turn one"):
        CandidateSampler(ldm, Prompts(ldm, CLASS_NAMES), reuse_interval=2)
