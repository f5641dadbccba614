"""Fine-tuning against plain autograd and AdamW written out, in float64."""

import pytest
import torch

from domainbed_domainfusion.diffusion import fine_tuning
from domainbed_domainfusion.diffusion.fine_tuning import Pictures, check, fine_tuned, unet_weights
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.source import resolve_source
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.seeding import generator_of

from ..tiny_ldm import make_tiny_stable_diffusion

STEPS, RATE, BATCH, PICTURES = 3, 1e-3, 4, 6


@pytest.fixture
def ldm(tiny_ldm):
    return LatentDiffusion.load(tiny_ldm, device="cpu", dtype="float64")


def picture(i):
    return torch.rand(3, 16, 16, generator=generator_of("picture", i), dtype=torch.float64) * 2 - 1


def tune(ldm, **changes):
    settings = {"steps": STEPS, "rate": RATE, "batch": BATCH, "identity": (7, "test"), **changes}
    return fine_tuned(ldm, ldm.embed(["a dog"]), [Pictures(PICTURES, lambda i: (picture(i), 0))], **settings)


def weights(ldm):
    return torch.cat([weight.flatten() for weight in ldm._unet.parameters()])


def twin(ldm):
    """Each image of a batch on its own; Loshchilov and Hutter's Algorithm 2 with torch's defaults."""
    unet, embedding = ldm.trainable_unet(), ldm.embed(["a dog"])
    theta = list(unet.parameters())
    m, v = ([torch.zeros_like(weight) for weight in theta] for _ in range(2))
    for step in range(STEPS):
        generator = generator_of(7, "test", step)
        rows = torch.randint(PICTURES, (BATCH,), generator=generator).tolist()
        shape = (BATCH, 4, 4, 4)
        sampled, noise = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
        times = torch.randint(1000, (BATCH,), generator=generator).tolist()
        loss = 0.0
        for i, (row, t) in enumerate(zip(rows, times)):
            with torch.no_grad():
                posterior = ldm._vae.encode(picture(row)[None]).latent_dist
            z = (posterior.mean + posterior.std * sampled[i].double()) * 0.4
            a = ldm.alphas_cumprod[t].double()
            z_t = a.sqrt() * z + (1 - a).sqrt() * noise[i].double()
            predicted = unet(z_t, torch.tensor([t]), encoder_hidden_states=embedding).sample
            loss = loss + ((predicted - noise[i].double()) ** 2).mean() / BATCH
        gradients = torch.autograd.grad(loss, theta)
        with torch.no_grad():
            for k, (weight, g) in enumerate(zip(theta, gradients)):
                m[k], v[k] = 0.9 * m[k] + 0.1 * g, 0.999 * v[k] + 0.001 * g**2
                along = m[k] / (1 - 0.9 ** (step + 1)) / ((v[k] / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
                weight -= RATE * (along + 0.01 * weight)
    return torch.cat([weight.detach().flatten() for weight in theta])


def test_its_steps_are_adamw_on_the_mean_squared_error_of_the_noise(ldm):
    torch.testing.assert_close(weights(tune(ldm)), twin(ldm), rtol=0, atol=1e-8)


def test_the_shared_model_stays_as_it_is(ldm):
    before = weights(ldm).clone()
    tuned = tune(ldm)
    assert torch.equal(weights(ldm), before) and not torch.equal(weights(tuned), before)
    assert tuned._vae is ldm._vae and not any(weight.requires_grad for weight in tuned._unet.parameters())
    assert not tuned._unet.training
    z, t, c = torch.randn(1, 4, 4, 4, dtype=torch.float64), torch.tensor([500]), ldm.embed([""])
    assert not torch.equal(tuned.predict_noise(z, t, c), ldm.predict_noise(z, t, c))


def test_memory_that_does_not_suffice_divides_the_batch_and_changes_nothing(ldm, monkeypatch):
    whole, add, sizes = weights(tune(ldm)), fine_tuning._add_gradient, []

    def small(*arguments):
        sizes.append(arguments[-1].stop - arguments[-1].start)
        if sizes[-1] > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        add(*arguments)

    monkeypatch.setattr(fine_tuning, "_add_gradient", small)
    torch.testing.assert_close(weights(tune(ldm)), whole, rtol=0, atol=1e-8)
    assert sizes[:4] == [4, 2, 1, 1] and sizes.count(1) == BATCH * STEPS


def test_it_needs_no_gradient_mode_and_draws_no_global_number(ldm):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with torch.no_grad():
        one = tune(ldm)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(weights(one), weights(tune(ldm)))
    assert not torch.equal(weights(one), weights(tune(ldm, identity=(8, "test"))))


def test_it_learns(ldm):
    """One picture, many steps: the error on new noise falls."""

    def error(model):
        z = model.encode(picture(0)[None])
        t = torch.arange(0, 1000, 50)
        noise = torch.randn(20, 4, 4, 4, generator=generator_of("noise"), dtype=torch.float64)
        a = model.alphas_cumprod[t].double()[:, None, None, None]
        predicted = model.predict_noise(a.sqrt() * z + (1 - a).sqrt() * noise, t, model.embed([""]).expand(20, -1, -1))
        return (predicted - noise).square().mean().item()

    one = [Pictures(1, lambda i: (picture(0), 0))]
    tuned = fine_tuned(ldm, ldm.embed([""]), one, steps=40, rate=3e-3, batch=8, identity=(1,))
    with torch.no_grad():
        assert error(tuned) < 0.8 * error(ldm)


def test_memory_is_counted_from_the_headers(ldm, tiny_ldm, monkeypatch):
    path = resolve_source(tiny_ldm)
    count = len(weights(ldm))
    assert unet_weights(path) == count
    monkeypatch.setattr(fine_tuning, "free_memory", lambda device: count * (16 + 3 * 2))
    check(path, 3, 2, torch.device("cpu"), "do less")
    with pytest.raises(InputError, match=f"Fine-tuning 3 U-Nets of {count:,} weights takes .* free: do less."):
        check(path, 3, 4, torch.device("cpu"), "do less")
    monkeypatch.setattr(fine_tuning, "free_memory", lambda device: None)
    check(path, 3, 4, torch.device("cpu"), "do less")


def test_a_latent_consistency_model_is_refused(tmp_path):
    path = make_tiny_stable_diffusion(tmp_path / "lcm", time_cond_proj_dim=8)
    with pytest.raises(InputError, match="lcm is a latent consistency model, whose U-Net is not .*: do less"):
        check(path, 3, 4, torch.device("cpu"), "do less")
