"""DSI: views against DDIM written out, the gate image by image, fine-tuning on in-splits alone, and what is kept."""

import copy
import json

import pytest
import torch

from domainbed_domainfusion.algorithms import domain_models
from domainbed_domainfusion.algorithms.by_image import digests
from domainbed_domainfusion.diffusion import fine_tuning
from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.seeding import seed_of

from ..conftest import WiredDigits

#: Every answer is unsure until the end.
UNSURE = {"dsi_threshold": 1.0, "dsi_steps": 4, "dsi_starts": [1, 3]}
TUNED = {**UNSURE, "dsi_finetune_steps": 2, "dsi_finetune_batch": 3}


@pytest.fixture
def run(host_run, tiny_ldm):
    return lambda **hparams: host_run("DSI", **{"ldm": tiny_ldm, **UNSURE, **hparams})


@pytest.fixture
def sampled(monkeypatch):
    """The number of images of every call of the sampler."""
    found, sample = [], CandidateSampler.sample
    monkeypatch.setattr(
        CandidateSampler, "sample", lambda self, x, *rest: found.append(len(x)) or sample(self, x, *rest)
    )
    return found


def images(r, count=5):
    return torch.stack([r.dataset[0][i][0] for i in range(count)])


def by_hand(ldm, image, start, steps, seed):
    """Noise to a start time of leading DDIM timesteps and DDIM back (Song et al., eq. 12 with σ = 0); (3, S, S)."""
    generator = torch.Generator().manual_seed(seed)
    posterior = ldm.posterior(image[None] * 2 - 1)
    shape = posterior.mean.shape
    z = (posterior.mean + posterior.std * torch.randn(shape, generator=generator)) * ldm.scaling_factor
    times = [i * (1000 // steps) + 1 for i in range(start)]
    alphas = [ldm.alphas_cumprod[t].item() for t in times]
    z = alphas[-1] ** 0.5 * z + (1 - alphas[-1]) ** 0.5 * torch.randn(shape, generator=generator)
    before = [ldm.alphas_cumprod[0].item(), *alphas[:-1]]
    empty = ldm.embed([""])
    for t, a, b in reversed(list(zip(times, alphas, before))):
        noise = ldm.predict_noise(z, torch.tensor([t]), empty)
        clean = (z - (1 - a) ** 0.5 * noise) / a**0.5
        z = b**0.5 * clean + (1 - b) ** 0.5 * noise
    return ldm.decode(z)[0]


@pytest.mark.parametrize("start", [1, 3])
@torch.no_grad()
def test_a_view_is_the_image_noised_and_denoised_without_a_prompt(run, start):
    ours, x = (r := run()).algorithm.eval(), images(r, 2)
    keys = digests(x)
    views = ours.views(x, keys, start)
    assert views.shape == (2, 1, 3, 32, 32)
    ldm = ours._model.ldm
    for image, key, found in zip(x, keys, views[:, 0]):
        expected = by_hand(ldm, image, start, 4, seed_of(0, "DSI view", 0, start, key))
        torch.testing.assert_close(found, (expected + 1) / 2, rtol=0, atol=0.51 / 255)


@torch.no_grad()
def test_each_domain_has_a_view_by_its_own_model(run):
    ours, x = (r := run(**TUNED)).algorithm.eval(), images(r, 2)
    keys = digests(x)
    views = ours.views(x, keys, 3)
    models = ours.domain_models(x.device)
    assert views.shape == (2, 2, 3, 32, 32) and len(models) == 2
    for domain, ldm in enumerate(models):
        expected = by_hand(ldm, x[1], 3, 4, seed_of(0, "DSI view", domain, 3, keys[1]))
        torch.testing.assert_close(views[1, domain], (expected + 1) / 2, rtol=0, atol=0.51 / 255)


def made_up(r, monkeypatch, originals, of_views):
    """DSI with made-up logits: image i is i everywhere; its views at a start are 100 · start + 10 · model + i."""

    def views(x, keys, start):
        values = [[100 * start + 10 * model + i for model in range(2)] for i in x[:, 0, 0, 0].tolist()]
        return torch.tensor(values)[..., None, None, None].expand(-1, -1, 3, 2, 2)

    def classify(x):
        numbers = x[:, 0, 0, 0].tolist()
        return torch.tensor([originals[int(n)] if n < 10 else of_views[int(n)] for n in numbers], dtype=torch.float64)

    monkeypatch.setattr(r.algorithm, "views", views)
    monkeypatch.setattr(r.algorithm, "classify", classify)
    return r.algorithm.eval()


def test_the_gate_image_by_image(run, monkeypatch):
    """Image 0 is sure, 1 after start 1, 2 after start 3, 3 never."""
    originals = {0: [9.0, 0.0], 1: [1.0, 0.5], 2: [0.2, 0.3], 3: [0.6, 0.0]}
    of_views = {
        101: [0.0, 6.0], 111: [1.0, 8.0],  # mean (2, 14.5) / 3
        102: [0.5, 0.0], 112: [0.0, 0.5], 302: [9.0, 0.0], 312: [0.0, 1.0],  # at start 3: (9.2, 1.3) / 3
        103: [0.0, 0.0], 113: [0.3, 0.0], 303: [0.0, 2.0], 313: [0.0, 0.0],
    }  # fmt: skip
    ours = made_up(run(dsi_threshold=0.9), monkeypatch, originals, of_views)
    x = torch.arange(4.0)[:, None, None, None].expand(4, 3, 2, 2)
    expected = [[9.0, 0.0], [2 / 3, 14.5 / 3], [9.2 / 3, 1.3 / 3], [0.6, 0.0]]
    found = ours.predict(x)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(ours.predict(x.flip(0)).flip(0), found)


def test_a_threshold_of_zero_is_erm_and_loads_no_model(run, host_run):
    trained = []
    for make in (lambda: host_run("ERM"), lambda: run(dsi_threshold=0.0)):
        r = make()
        losses = [row["loss"] for row in r.update(3)]
        trained.append((losses, r.algorithm.eval().predict(images(r))))
    assert trained[0][0] == trained[1][0] and torch.equal(trained[0][1], trained[1][1])
    assert r.algorithm._model is None


def test_views_are_made_once_whatever_becomes_of_the_classifier(run, sampled):
    r = run()
    ours, x = r.algorithm, images(r)
    first = ours.eval().predict(x)
    assert sampled == [5, 5]  # one view at each start
    ours.train()
    r.update(2)
    second = ours.eval().predict(torch.cat([x, x[:1]]))
    assert sampled == [5, 5] and not torch.equal(first, second[:5])
    fresh = copy.deepcopy(ours)
    assert torch.equal(fresh.predict(torch.cat([x, x[:1]])), second) and len(sampled) == 4


def test_what_does_not_fit_into_the_cache_is_made_again(run, sampled):
    view = 3 * 32 * 32
    r = run(test_time_cache_gb=3 * view / 2**30, dsi_starts=[1])
    ours, x = r.algorithm.eval(), images(r)
    one, other = ours.predict(x), ours.predict(x)
    torch.testing.assert_close(other, one, rtol=0, atol=1e-3)  # another batch rounds otherwise
    assert sampled == [5, 2] and ours._views._bytes == 3 * view


def test_answers_depend_on_no_other_image_and_not_on_the_batch_of_the_model(run):
    whole = (r := run()).algorithm.eval().predict(x := images(r))
    torch.testing.assert_close(run().algorithm.eval().predict(x.flip(0)).flip(0), whole, rtol=0, atol=1e-3)
    one = run(test_time_batch=1).algorithm.eval()
    torch.testing.assert_close(torch.cat([one.predict(image[None]) for image in x]), whole, rtol=0, atol=1e-3)


def test_fine_tuning_reads_the_in_splits_alone_and_changes_no_training(run, host_run):
    losses, x = [], torch.rand(2, 3, 32, 32)
    for make in (lambda: host_run("ERM", test_env=1), lambda: run(dataset=WiredDigits, test_env=1, **TUNED)):
        r = make()
        r.algorithm.eval().predict(x)
        read = [set(getattr(environment, "read", ())) for environment in r.dataset.datasets]
        r.algorithm.train()
        losses.append([row["loss"] for row in r.update(2)])
    assert read[1] == set() and all(read[i] and read[i] <= set(r.in_splits[i].keys) for i in (0, 2))
    assert losses[0] == losses[1]


def test_each_domains_model_is_fine_tuned_with_its_own_random_numbers_and_the_empty_prompt(run, monkeypatch):
    given = []

    def spy(ldm, embedding, domains, *, identity, steps, rate, batch, name):
        (pictures,) = domains
        given.append((identity, pictures.number, steps, rate, batch))
        assert all(pictures.item(i)[1] == 0 for i in range(4))
        assert torch.equal(embedding, ldm.embed([""]))
        return ldm

    monkeypatch.setattr(fine_tuning, "fine_tuned", spy)
    r = run(**TUNED, test_env=1)
    r.algorithm.domain_models(torch.device("cpu"))
    sizes = [len(r.in_splits[i]) for i in (0, 2)]
    assert given == [((0, "DSI fine-tuning", i), size, 2, 1e-4, 3) for i, size in zip((0, 2), sizes)]


def test_an_answer_at_the_threshold_is_not_sure(run):
    assert run(dsi_threshold=0.5).algorithm.is_sure(torch.tensor([[1.0, 1.0], [1.0, 1.1]])).tolist() == [False, True]


def test_a_picture_is_the_raw_image_of_the_domain(run):
    r = run()
    split = r.context.in_splits[1]
    picture, _ = domain_models.pictures_of(split, 16, with_labels=False).item(3)
    expected = torch.nn.functional.interpolate(r.dataset[2][split.keys[3]][0][None], (16, 16), mode="bilinear",
                                               antialias=True, align_corners=False)[0]  # fmt: skip
    torch.testing.assert_close((picture + 1) / 2, expected, rtol=0, atol=0.51 / 255)


def test_the_models_are_the_same_when_they_are_made_again(run):
    x = images(run())
    one, other = (run(**TUNED).algorithm.eval() for _ in range(2))
    assert torch.equal(one.predict(x), other.predict(x))
    assert one._domain_models[0] is not other._domain_models[0]


def test_outside_the_training_run_a_fine_tuned_model_is_refused_and_the_frozen_one_answers(tiny_ldm):
    values = {**host.hparams_registry.default_hparams("DSI", "Debug28"), **UNSURE, "ldm": tiny_ldm, "image_size": 32}
    x = torch.rand(2, 3, 28, 28)
    made = host.algorithms.DSI((3, 28, 28), 2, 3, values).eval()
    assert made.predict(x).shape == (2, 2)
    made = host.algorithms.DSI((3, 28, 28), 2, 3, {**values, "dsi_finetune_steps": 1}).eval()
    with pytest.raises(InputError, match="DSI's fine-tuned diffusion models exist only in the training run, and are"):
        made.predict(x)


def test_too_little_memory_is_said_before_training(run, monkeypatch):
    monkeypatch.setattr(fine_tuning, "free_memory", lambda device: 2**20)
    run()
    with pytest.raises(InputError, match=r"Fine-tuning 2 U-Nets of [\d,]+ weights takes 0.0 GiB at least, "
                                         "and 0.0 GiB are free: set dsi_finetune_steps to 0, or"):  # fmt: skip
        run(**TUNED)


def test_a_start_beyond_the_schedule_is_refused(run):
    with pytest.raises(InputError, match="dsi_starts is \\[1, 5\\], but the schedule has 4 steps: give start times up"):
        run(dsi_starts=[1, 5])
    with pytest.raises(InputError, match="The hparam dsi_starts is \\[3, 1\\], but must be a list of rising whole"):
        run(dsi_starts=[3, 1])


def test_its_defaults_are_those_of_the_paper_where_the_paper_has_them():
    values = host.hparams_registry.default_hparams("DSI", "PACS")
    assert (values["image_size"], values["dsi_finetune_batch"], values["dsi_finetune_lr"]) == (256, 48, 1e-4)
    assert values["dsi_starts"][-1] / values["dsi_steps"] == 200 / 250
    assert "prompt_template" not in values and "class_names" not in values
    assert json.loads(json.dumps(values)) == values
