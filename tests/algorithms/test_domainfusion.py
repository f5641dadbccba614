"""DomainFusion: a step against the paper's formulas, φ outside the module tree, and no test or validation data read."""

import copy
import io
import math
import pickle

import pytest
import torch
import torch.nn.functional as F

from domainbed_domainfusion.diffusion import style
from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.generated.saved_rounds import read_part
from domainbed_domainfusion.hosting import context, host
from domainbed_domainfusion.seeding import seed_of

from ..conftest import TinyDigits, WiredDigits
from ..tiny_ldm import make_tiny_autoencoder, make_tiny_stable_diffusion

FAST = {"denoising_steps": 3, "generation_interval": 1, "ld_images": 2, "gallery": 0}


@pytest.fixture
def run(host_run, tiny_ldm):
    def make(algorithm="DomainFusion", dataset=TinyDigits, test_env=0, **hparams):
        return host_run(algorithm, test_env, dataset, **{"ldm": tiny_ldm, **FAST, **hparams})

    return make


def test_without_lambda2_and_lambda3_it_is_erm(run):
    """Bit for bit: the same losses and the same weights after ten steps."""
    plain = {"lr": 1e-3, "weight_decay": 1e-4, "lr_schedule": "constant"}
    erm = run("ERM", **plain)
    losses = [values["loss"] for values in erm.update(10)]
    ours = run(lambda2=0.0, lambda3=0.0, **plain)
    assert [values["loss"] for values in ours.update(10)] == losses
    for a, b in zip(ours.algorithm.network.parameters(), erm.algorithm.network.parameters()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("ld_input", ["generated", "raw"])
@pytest.mark.parametrize("gradient", ["full", "sds"])
def test_the_gradient_of_a_step(run, ld_input, gradient):
    """∇ = λ1 ∇CE(raw) + λ2 mean(a_i ∇p_i) + λ3 ∇CE(generated), each by a backward pass of its own."""
    r = run(ld_input=ld_input, ld_gradient=gradient, ld_images=0, lambda1=0.7, lambda2=3.0, lambda3=0.4)
    r.update(1)
    ours = r.algorithm
    plain = copy.deepcopy(ours.network)
    minibatches = next(r.minibatches)
    x, y = (torch.cat(parts) for parts in zip(*minibatches))
    step, seed = ours.step, r.context.seed
    assert not ours.generates_at(step)
    x_gen, y_gen, _ = ours.generate_dataset.minibatch(step)

    x_ld, y_ld = (x_gen, y_gen) if ld_input == "generated" else (x, y)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed_of(seed, "ld images", step)))
    x_ld, y_ld = x_ld[order], y_ld[order]
    p = plain(x_ld).softmax(-1)[range(8), y_ld]
    _, a = ours.distillation.coefficients(
        x_ld * 2 - 1, y_ld, p.detach(), [seed_of(seed, "ld", step, i) for i in range(8)]
    )
    assert a.abs().max() > 0
    expected = [0.0] * len(list(plain.parameters()))
    for term in (0.7 * F.cross_entropy(plain(x), y), 3.0 * (a * p).mean(), 0.4 * F.cross_entropy(plain(x_gen), y_gen)):
        gradients = torch.autograd.grad(term, list(plain.parameters()), retain_graph=True)
        expected = [total + gradient for total, gradient in zip(expected, gradients)]
    ours.update(minibatches)
    for weight, gradient in zip(ours.network.parameters(), expected):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-4, atol=1e-6)


def test_generate_is_lines_7_to_12(run):
    """Choices by a loop over images and candidates, with the library's own softmax and cosine."""
    r = run()
    r.update(1)
    ours = r.algorithm.eval()
    x = torch.rand(3, 3, 32, 32) * 2 - 1
    y, seeds = torch.tensor([1, 0, 3]), [[10 * i + j for j in range(3)] for i in range(3)]
    made = ours.generation(x, y, seeds)
    candidates = ours.generation.sampler.sample(x, y, seeds).images
    with torch.no_grad():
        for i in range(3):
            content, divergence = [], []
            mu0, sigma0 = style.statistics(x[i])
            feature0 = ours.featurizer(x[i : i + 1] / 2 + 0.5)[0]
            for j in range(3):
                image = candidates[i, j]
                feature = ours.featurizer(image[None] / 2 + 0.5)[0]
                confidence = ours.predict(image[None] / 2 + 0.5).softmax(-1)[0, y[i]]
                content.append(0.4 * F.cosine_similarity(feature0, feature, dim=0) + 0.6 * confidence)
                mu, sigma = style.statistics(image)
                divergence.append(
                    sum(
                        math.exp(m0) * (m0 - m) - math.exp(m0) + math.exp(m) + s0 * math.log(s0 / s) - s0 + s
                        for m0, s0, m, s in zip(mu0.tolist(), sigma0.tolist(), mu.tolist(), sigma.tolist())
                    )
                )
            c, s = max(range(3), key=content.__getitem__), max(range(3), key=divergence.__getitem__)
            assert (made.content[i], made.style[i]) == (c, s)
            mu, sigma = style.statistics(candidates[i, s])
            _, _, body = style.decompose(candidates[i, c])
            expected = (body * sigma[:, None, None] + mu[:, None, None]).clamp(-1, 1)
            torch.testing.assert_close(made.images[i], expected, atol=1e-5, rtol=0)


def test_rounds_come_every_interval_epochs(run):
    """Epochs have 4 steps and are counted from 1. Epochs with i % Itv == 0 begin with a round."""
    r = run(generation_interval=2, lambda2=0.0)
    made = [values["generated_images"] > 0 for values in r.update(17)]
    assert [step for step, generated in enumerate(made) if generated] == [4, 12]
    r = run(updating=False, generation_interval=2, lambda2=0.0)
    assert [step for step, v in enumerate(r.update(9)) if v["generated_images"]] == [0]


def test_an_epoch_that_is_no_whole_number_of_steps(run):
    r = run(batch_size=5, lambda2=0.0, generation_budget=4)  # 16 / 5 = 3.2 steps an epoch
    rounds = [step for step, values in enumerate(r.update(17)) if values["generated_images"]]
    assert rounds == [0, 4, 7, 10, 13, 16]  # the first steps at or after 0, 3.2, 6.4, 9.6, 12.8, 16


def weights_after(algorithm) -> list[torch.Tensor]:
    return [weight.clone() for weight in algorithm.network.state_dict().values()]


@pytest.mark.parametrize("save_generated", ["all", "last"])
def test_a_run_started_again_ends_as_if_it_had_not_been_interrupted(
    run, as_script, tmp_path, monkeypatch, capsys, save_generated
):
    """The results are equal bit for bit. With "all" no saved image is generated again.

    Rounds begin at steps 0, 4 and 8.
    """

    def start(name, steps):
        as_script("train", "--output_dir", str(tmp_path / name), "--steps", "10")
        r = run(save_generated=save_generated, lr=1e-3)
        values = r.update(steps)
        return [{key: v for key, v in row.items() if "seconds" not in key} for row in values], values, r.algorithm

    whole, _, a = start("whole", 10)
    start("stopped", 6)
    made, sample = [], CandidateSampler.sample
    monkeypatch.setattr(
        CandidateSampler, "sample", lambda self, x, *rest: made.append(len(x)) or sample(self, x, *rest)
    )
    resumed, values, b = start("stopped", 10)
    assert whole == resumed
    assert all(torch.equal(x, y) for x, y in zip(weights_after(a), weights_after(b)))
    assert sum(made) == (35 if save_generated == "all" else 70)  # "last" kept round 2, so rounds 1 and 3 are generated
    if save_generated == "all":  # includes the seconds of saved images
        _, metadata = read_part(tmp_path / "stopped/generated/rounds/round-002/part-000.safetensors")
        assert values[4]["generation_seconds"] > float(metadata["seconds"])
    assert capsys.readouterr().out == ""
    held, _ = read_part(tmp_path / "stopped/generated/rounds/round-003/part-000.safetensors")
    store = b.generate_dataset
    assert torch.equal(held["images"], torch.stack([store.version(row)[0] for row in range(len(store.keys))]))


def test_a_run_with_other_hparams_or_another_model_takes_nothing_that_was_saved(run, as_script, tmp_path, capsys):
    as_script("train", "--output_dir", str(tmp_path))
    run().update(1)
    run(gallery=1).update(1)
    assert capsys.readouterr().out == ""
    run(strength=0.7).update(1)
    assert "are another run's (strength: 0.8 there, 0.7 here)" in capsys.readouterr().out
    other = make_tiny_stable_diffusion(tmp_path / "other", seed=1)
    run(strength=0.7, ldm=str(other)).update(1)
    as_script("train", "--output_dir", str(tmp_path), "--seed", "1")
    run(strength=0.7, ldm=str(other)).update(1)
    assert "(seed: 0 there, 1 here)" in capsys.readouterr().out
    assert len(list((tmp_path / "generated").glob("rounds-set-aside-*"))) == 3

    decoder = tmp_path / "decoder"
    for seed in (0, 1):  # the second decoder replaces the first in the same folder
        make_tiny_autoencoder(decoder, seed)
        capsys.readouterr()
        run(strength=0.7, ldm=str(other), ldm_decoder=str(decoder)).update(1)
    assert "(decoder_sha256: " in capsys.readouterr().out


def test_cosine_over_the_runs_length(run):
    r = run(lr=1e-3, lambda2=0.0, lambda3=0.0)
    rates = []
    for _ in range(12):  # TinyDigits.N_STEPS
        r.update(1)
        rates.append(r.algorithm.optimizer.param_groups[0]["lr"])
    expected = [1e-3 * 0.5 * (1 + math.cos(math.pi * t / 12)) for t in range(12)]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_the_same_keys_every_step(run):
    values = run(generation_interval=2).update(6)
    assert all(list(v) == list(values[0]) for v in values)
    assert all(type(number) is float for v in values for number in v.values())


def test_the_diffusion_model_is_outside_the_module_tree(run):
    r, erm = run(), run("ERM")
    untouched = set(r.algorithm.state_dict())
    r.update(2)
    ours, weights = r.algorithm, r.algorithm.generation.sampler.ldm
    assert set(ours.state_dict()) == untouched == set(erm.algorithm.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in erm.algorithm.parameters())
    erm.update(2)
    sizes = []
    for algorithm in (ours, erm.algorithm):
        buffer = io.BytesIO()
        torch.save(algorithm.state_dict(), buffer)
        sizes.append(buffer.tell())
    assert sizes[0] == sizes[1]
    pickled = pickle.dumps(ours)
    assert len(pickled) < 4 * sizes[0]  # weights, gradients and Adam's two moments
    twin = copy.deepcopy(ours)
    assert (
        twin.generation is twin.distillation is twin.generate_dataset is None and ours.generation.sampler.ldm is weights
    )
    x = torch.rand(2, 3, 32, 32)
    for other in (twin, pickle.loads(pickled)):
        torch.testing.assert_close(other.eval().predict(x), ours.eval().predict(x))


def test_a_deepcopy_trains_on(run):
    twin = copy.deepcopy(run(lambda2=0.0).algorithm)
    x, y = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    assert twin.update([(x, y), (x, y)])["loss"] > 0


@pytest.mark.parametrize("test_env", [0, 1, 2])
def test_nothing_of_a_test_environment_or_a_validation_split_is_read(run, test_env):
    r = run(dataset=WiredDigits, test_env=test_env)
    r.update(9)
    assert r.algorithm.generate_dataset.rounds >= 2
    for i, environment in enumerate(r.dataset.datasets):
        in_split, out_split = set(r.in_splits[i].keys), set(r.out_splits[i].keys)
        if i == test_env:
            assert environment.read == set()
        else:
            assert environment.read == in_split and not environment.read & out_split


def test_outside_a_training_run_it_trains_and_says_that_it_generates_nothing(tiny_ldm):
    """As in DomainBed's unit tests: a dataset, minibatches, no loaders."""
    hparams = {**host.hparams_registry.default_hparams("DomainFusion", "Debug28"), **FAST, "ldm": tiny_ldm}
    dataset = host.datasets.Debug28("", [], hparams)
    algorithm = host.algorithms.DomainFusion(dataset.input_shape, dataset.num_classes, 3, hparams)
    minibatches = [
        (torch.stack([env[i][0] for i in range(8)]), torch.stack([env[i][1] for i in range(8)])) for env in dataset
    ]
    with pytest.warns(UserWarning, match="DomainFusion generates nothing here"):
        values = algorithm.update(minibatches)
    assert values["generated_images"] == 0 and values["raw_loss"] == values["generated_loss"]
    assert algorithm.predict(minibatches[0][0]).shape == (8, 2)


def test_label_numbers_stand_for_missing_class_names_and_are_said_once(capsys, tiny_ldm):
    hparams = {**host.hparams_registry.default_hparams("DomainFusion", "Debug28"), "ldm": tiny_ldm}
    context.dataset_built(host.datasets.Debug28("", [], hparams))
    algorithm = host.algorithms.DomainFusion((3, 28, 28), 2, 3, hparams)
    assert algorithm.class_names == ["0", "1"]
    assert capsys.readouterr().out.count("no class names") == 1
    hparams["class_names"] = ["cat", "dog"]
    assert host.algorithms.DomainFusion((3, 28, 28), 2, 3, hparams).class_names == ["cat", "dog"]
    hparams["class_names"] = ["cat"]
    with pytest.raises(InputError, match="class_names has 1 names, but the dataset has 2 classes"):
        host.algorithms.DomainFusion((3, 28, 28), 2, 3, hparams)


def test_bad_hparams_and_models_stop_before_any_training(run, tmp_path):
    with pytest.raises(InputError, match="The hparam strength is 2.0"):
        run(strength=2.0)
    with pytest.raises(InputError, match="does not exist"):
        run(ldm=str(tmp_path / "nowhere"))
