"""The running average of the weights: against the mean of saved weights, and a run without it."""

import copy
import json
import pickle
import runpy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host

SHAPE = (3, 28, 28)


def built(algorithm: str, **hparams):
    values = {**host.hparams_registry.default_hparams(algorithm, "Debug28"), **hparams}
    torch.manual_seed(0)
    return host.algorithms.get_algorithm_class(algorithm)(SHAPE, 2, 3, values)


def trained(algorithm, steps: int) -> list[dict]:
    """The raw weights after each of `steps` steps on random images."""
    generator, saved = torch.Generator().manual_seed(1), []
    dtype = next(algorithm.parameters()).dtype
    for _ in range(steps):
        x = torch.randn(4, *SHAPE, generator=generator, dtype=dtype)
        algorithm.update([(x, torch.randint(2, (4,), generator=generator))])
        saved.append(raw(algorithm))
    return saved


def raw(algorithm) -> dict:
    """What the modules hold, whatever `state_dict` says."""
    return {
        name: tensor.detach().clone() for name, tensor in (*algorithm.named_parameters(), *algorithm.named_buffers())
    }


def looped(saved: list[dict], kind: str, start: int, decay: float) -> dict:
    """The average of the weights after `start` steps and later, from its definition."""
    counted = saved[start - 1 :]
    if kind == "sma":
        return {name: torch.stack([weights[name] for weights in counted]).mean(0) for name in counted[0]}
    average = counted[0]
    for weights in counted[1:]:
        average = {name: decay * average[name] + (1 - decay) * weights[name] for name in average}
    return average


@pytest.mark.parametrize("algorithm", ["ERM", "SAM"])
@pytest.mark.parametrize("kind", ["sma", "ema"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_it_is_the_average_of_the_saved_weights(algorithm, kind, dtype, tolerance):
    hparams = {"weight_average": kind, "weight_average_start": 3, "weight_average_decay": 0.7}
    ours = built(algorithm, **hparams).to(dtype)
    saved = trained(ours, 7)
    expected = looped(saved, kind, 3, 0.7)
    ours.eval()
    shown, state = raw(ours), ours.state_dict()
    for name, weight in expected.items():
        torch.testing.assert_close(shown[name], weight, rtol=tolerance, atol=tolerance)
        assert torch.equal(state[name], shown[name])
    assert torch.equal(state["network.0.conv1.weight"], state["featurizer.conv1.weight"])
    assert not torch.equal(shown["featurizer.conv1.weight"], saved[-1]["featurizer.conv1.weight"])
    x = torch.randn(2, *SHAPE, dtype=dtype)
    plain = built(algorithm).to(dtype).eval()
    plain.load_state_dict(state)
    assert torch.equal(ours.predict(x), plain.predict(x))


@pytest.mark.parametrize("when", [{"weight_average_start": 6}, {"weight_average_start": 2}])
def test_training_is_the_same_and_a_late_start_is_none(when):
    """Evaluations between the steps change nothing either."""
    none, ours = built("ERM"), built("ERM", weight_average="sma", **when)
    x = torch.randn(4, *SHAPE)
    for step in range(5):
        batch = [(torch.randn(4, *SHAPE), torch.randint(2, (4,)))]
        assert none.update(batch) == ours.update(batch)
        none.eval(), ours.eval()
        same = torch.equal(none.predict(x), ours.predict(x))
        none.train(), ours.train()
        assert same is (step + 1 <= when["weight_average_start"])
        for name, weight in raw(none).items():
            assert torch.equal(weight, raw(ours)[name]), name
    late = when["weight_average_start"] > 5
    assert all(torch.equal(a, b) for a, b in zip(none.state_dict().values(), ours.state_dict().values())) is late
    assert list(none.state_dict()) == list(ours.state_dict())


def test_training_mode_has_the_raw_weights_and_the_order_of_evaluations_does_not_matter():
    ours = built("ERM", weight_average="sma", weight_average_start=1)
    saved = trained(ours, 3)
    x = torch.randn(6, *SHAPE)
    in_train_mode = ours.predict(x)
    results = []
    for order in (range(6), reversed(range(6))):
        ours.eval(), ours.eval()
        rows = {i: ours.predict(x[i : i + 1]) for i in order}
        results.append(torch.cat([rows[i] for i in range(6)]))
        before = ours.state_dict()
        ours.train(), ours.train()
        assert all(torch.equal(a, b) for a, b in zip(before.values(), ours.state_dict().values()))
        assert torch.equal(ours.predict(x), in_train_mode)
        assert all(torch.equal(weight, raw(ours)[name]) for name, weight in saved[-1].items())
    assert torch.equal(*results) and not torch.allclose(results[0], in_train_mode, atol=1e-6)
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(copied) is type(ours) and isinstance(copied, host.algorithms.ERM)
        assert torch.equal(copied.eval().predict(x[:1]), ours.eval().predict(x[:1]))
        ours.train()


class Normalised(host.algorithms.Algorithm):
    """Somebody's own algorithm: batch normalisation, a counter, a buffer that grows, `train` and `eval` of its own."""

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.BatchNorm1d(3))
        self.register_buffer("seen", torch.tensor([0]))
        self.register_buffer("weights", torch.ones(0))
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.1)

    def update(self, minibatches, unlabeled=None):
        if not len(self.weights):
            self.weights = torch.ones(3)
        self.seen += 1
        x, y = (torch.cat(parts) for parts in zip(*minibatches))
        self.eval()  # as DomainFusion does for its rounds
        self.inside = self.predict(x).detach(), self.state_dict()["network.1.weight"].clone()
        self.train()
        self.before = self.network[1].weight.detach().clone()
        loss = F.cross_entropy(self.predict(x), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}

    def predict(self, x):
        return self.network(x)

    def train(self):
        self.network.train()

    def eval(self):
        self.network.eval()


def test_statistics_are_averaged_and_what_runs_inside_a_step_sees_the_raw_weights():
    torch.manual_seed(0)
    ours = Normalised((3, 2, 2), 3, 1, {"weight_average": "sma", "weight_average_start": 1})
    saved = []
    for _ in range(4):
        x = torch.randn(5, 3, 2, 2)
        twin = copy.deepcopy(ours)
        twin.train()
        twin.network.eval()
        ours.update([(x, torch.arange(5) % 3)])
        assert torch.equal(ours.inside[0], twin.network(x)) and torch.equal(ours.inside[1], ours.before)
        saved.append(raw(ours))
        ours.eval(), ours.train()
    ours.eval()
    assert ours.seen == 4 and torch.equal(ours.state_dict()["seen"], torch.tensor([4]))
    for name in ("network.1.weight", "network.2.running_mean", "network.2.running_var"):
        expected = torch.stack([weights[name] for weights in saved]).mean(0)
        torch.testing.assert_close(ours.state_dict()[name], expected)
        assert not torch.allclose(expected, saved[-1][name])
    assert torch.equal(ours.state_dict()["weights"], torch.ones(3))


def test_an_unknown_average_is_refused():
    with pytest.raises(InputError, match="The hparam weight_average is 'swa', but must be one of none, sma, ema, swad"):
        built("ERM", weight_average="swa")


def test_a_loaded_state_is_raw_and_begins_a_new_average():
    ours = built("ERM", weight_average="sma", weight_average_start=1)
    trained(ours, 3)
    state = ours.eval().state_dict()
    again = built("ERM", weight_average="sma", weight_average_start=1)
    trained(again, 1)
    again.eval()
    again.load_state_dict(state)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in state.items())
    again.train()
    assert all(torch.equal(weight, state[name]) for name, weight in raw(again).items())


@pytest.mark.parametrize("algorithm", ["ERM", "DomainFusion"])
def test_train_evaluates_and_saves_the_average(algorithm, monkeypatch, tmp_path, tiny_ldm, as_script):
    """The raw weights are those of the same run without an average, saved at every step."""
    monkeypatch.setattr(host.datasets.MultipleDomainDataset, "N_WORKERS", 0)
    models, lines = {}, {}
    for kind in ("none", "sma"):
        hparams = {"weight_average": kind, "weight_average_start": 2, "batch_size": 8, "lr": 0.01}
        if algorithm == "DomainFusion":
            hparams.update(
                ldm=tiny_ldm,
                lambda2=0.5,
                denoising_steps=2,
                ld_images=2,
                gallery=0,
                candidates=2,
                generation_interval=1,
            )
        folder = tmp_path / kind
        as_script("train", *("--dataset", "Debug28", "--algorithm", algorithm, "--output_dir", str(folder)),
                  *("--steps", "4", "--checkpoint_freq", "1", "--save_model_every_checkpoint"),
                  *("--hparams", json.dumps(hparams)))  # fmt: skip
        monkeypatch.setattr(sys, "stdout", sys.stdout)
        monkeypatch.setattr(sys, "stderr", sys.stderr)
        runpy.run_module(f"{host.NAME}.scripts.train", run_name="__main__")
        files = {path.stem: path for path in folder.glob("*.pkl")}
        models[kind] = {name: torch.load(path, weights_only=False)["model_dict"] for name, path in files.items()}
        lines[kind] = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines["sma"]] == [line["loss"] for line in lines["none"]]
    if algorithm == "DomainFusion":  # rounds of generation, which choose by the raw weights, are among these steps
        assert sum(line["generated_images"] for line in lines["sma"]) > 0
    steps = [models["none"][f"model_step{step}"] for step in range(4)]
    for name, weight in models["sma"]["model"].items():
        mean = torch.stack([state[name] for state in steps[1:]]).mean(0)
        torch.testing.assert_close(weight, mean, rtol=1e-5, atol=1e-6)
        assert torch.equal(models["sma"]["model_step1"][name], steps[1][name])
    assert not torch.equal(models["sma"]["model"]["network.1.weight"], steps[3]["network.1.weight"])
