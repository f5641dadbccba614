"""AdaNPC against neighbours that are sorted and counted one by one in float64, in training and in prediction."""

import copy
import io
import math
import pickle

import pytest
import torch

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.estimate import counting
from domainbed_domainfusion.hosting import context, host

from ..conftest import TinyDigits, WiredDigits
from . import two_layers as net

QUEUE, NEAREST = 11, 6  # smaller than two minibatches of eight: the oldest are pushed out at the second step


def unit(feature):
    return feature / (feature**2).sum() ** 0.5


def share_of_votes(feature, remembered, k, temperature, classes):
    """[p(class)] of one image: the votes of the k remembered (feature, label) pairs with the highest cosine."""
    cosines = [((unit(feature) * unit(other)).sum(), label) for other, label in remembered]
    nearest = sorted(cosines, key=lambda pair: -pair[0].item())[:k]
    weights = [(cosine / temperature).exp() for cosine, _ in nearest]
    shares = [0.0] * classes
    for weight, (_, label) in zip(weights, nearest):
        shares[label] = shares[label] + weight / sum(weights)
    return shares


@pytest.fixture
def small():
    """On the network of two layers, with a queue in float64 of its features' size."""
    made = net.algorithm("AdaNPC", adanpc_queue=QUEUE, adanpc_train_neighbours=NEAREST)
    made.queue = torch.nn.functional.normalize(torch.randn(QUEUE, net.HIDDEN).double())
    made.scheduler.optimizer = made.optimizer
    made.scheduler.patience, made.scheduler.cooldown = 1, 0
    made.total_steps = 8
    return made


def test_its_steps_are_adam_on_the_queues_votes(small):
    size = net.HIDDEN * net.INPUTS + net.HIDDEN
    theta, adam = net.flat(small), net.Adam()
    head = theta[size:].clone()
    queue = list(zip(small.queue.clone(), small.queue_labels.tolist()))
    best, bad, rates = math.inf, 0, []
    for step, batch in enumerate(net.minibatches(12)):
        x, y = net.joined(batch)
        at = theta[:size].clone().requires_grad_()
        features = net.features(torch.cat([at, head]), x)
        temperature = 1.0 - 0.9 * min(step, 8) / 8
        loss = 0.0
        for feature, label in zip(features, y.tolist()):
            share = share_of_votes(feature, queue, NEAREST, temperature, net.CLASSES)[label]
            loss = loss - torch.log(torch.as_tensor(share, dtype=torch.float64) + 1e-5) / len(x)
        adam.lr = rates[-1] if rates else 0.01
        theta = torch.cat([adam.step(theta[:size], torch.autograd.grad(loss, at)[0]), head])
        queue = (queue + [(unit(feature.detach()), label) for feature, label in zip(features, y.tolist())])[-QUEUE:]
        best, bad = (loss.item(), 0) if loss.item() < best * (1 - 1e-4) else (best, bad + 1)
        rates.append(adam.lr / 2 if bad > 1 else adam.lr)
        bad = 0 if bad > 1 else bad
        assert small.update(batch) == {"loss": pytest.approx(loss.item(), abs=1e-10)}
        assert small.optimizer.param_groups[0]["lr"] == pytest.approx(rates[-1])
    torch.testing.assert_close(net.flat(small), theta, rtol=0, atol=1e-9)
    assert 1 < len(set(rates)) < len(rates)  # the rate has fallen, and not at every step
    found = sorted((label, *feature) for feature, label in zip(small.queue.tolist(), small.queue_labels.tolist()))
    expected = sorted((label, *feature.tolist()) for feature, label in queue)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-9)


def test_the_schedule_is_the_authors():
    ours = net.algorithm("AdaNPC")
    named = {name: getattr(ours.scheduler, name) for name in ("factor", "patience", "cooldown", "min_lrs", "mode")}
    assert named == {"factor": 0.5, "patience": 500, "cooldown": 500, "min_lrs": [1e-6], "mode": "min"}
    assert ours.total_steps == 5001


def test_a_minibatch_larger_than_the_queue_leaves_its_last_features(small):
    batch = net.minibatches(1)[0]
    x, y = net.joined([*batch, *batch])
    features = torch.stack([unit(feature) for feature in net.features(net.flat(small), x)])
    small.update([*batch, *batch])
    order = (torch.arange(QUEUE) + small.queue_place) % QUEUE
    torch.testing.assert_close(small.queue[order], features[-QUEUE:], rtol=0, atol=1e-12)
    assert torch.equal(small.queue_labels[order], y[-QUEUE:])


class Projection(torch.nn.Module):
    """Features far enough apart that no two cosines are a near tie in float32."""

    n_outputs = 8

    def __init__(self):
        super().__init__()
        self.layer, self.dropout = torch.nn.Linear(3072, self.n_outputs, bias=False), torch.nn.Dropout(0.2)

    def forward(self, x):
        return torch.tanh(self.layer(self.dropout(x.flatten(1) - 0.5)))


@pytest.fixture
def run(host_run, monkeypatch):
    monkeypatch.setattr(host.networks, "Featurizer", lambda shape, hparams: Projection())

    def make(dataset=TinyDigits, **hparams):
        return host_run("AdaNPC", **{"dataset": dataset, "test_env": 1, "adanpc_neighbours": 7, "lr": 1e-3, **hparams})

    return make


@torch.no_grad()
def training_memory(r):
    """(feature, label) of the in-splits' images, one after the other."""
    ours = copy.deepcopy(r.algorithm).eval()
    return [
        (ours.featurizer(x[None])[0].double(), int(y))
        for i, split in enumerate(r.in_splits)
        for x, y in split
        if i != 1
    ]


def expected_of(ours, images, memory, temperature=0.1, k=7):
    with torch.no_grad():
        features = copy.deepcopy(ours).eval().featurizer(images).double()
    return [share_of_votes(feature, memory, k, temperature, 4) for feature in features]


def assert_shares(found, expected):
    for row, shares in zip(found, expected, strict=True):
        assert (row.exp() - 1e-5).tolist() == pytest.approx([float(share) for share in shares], abs=1e-4)


def images_of(r, environment, start=0, count=6):
    return torch.stack([r.dataset[environment][i][0] for i in range(start, start + count)])


@torch.no_grad()
def predicted(ours, x):
    return ours.eval().predict(x)


@pytest.mark.parametrize("temperature", [0.1, 0.02])
def test_the_nearest_training_images_answer(run, temperature):
    r = run(adanpc_temperature=temperature)
    for steps in (0, 3, 2):  # the memory is that of the weights, whatever has been predicted before
        r.update(steps)
        x = images_of(r, 1)
        assert_shares(predicted(r.algorithm, x), expected_of(r.algorithm, x, training_memory(r), temperature))


def test_nothing_of_a_test_environment_or_a_validation_split_is_remembered(run):
    r = run(dataset=WiredDigits)
    r.update(3)
    read = [set(environment.read) for environment in r.dataset.datasets]
    predicted(r.algorithm, torch.rand(2, 3, 32, 32))
    for i, environment in enumerate(r.dataset.datasets):
        assert environment.read == (set() if i == 1 else set(r.in_splits[i].keys))
        assert i == 1 or read[i] < environment.read


def test_a_memory_is_built_once_for_the_same_weights(run, monkeypatch):
    r, built = run(), []
    ours, build = r.algorithm, r.algorithm._training_features
    monkeypatch.setattr(ours, "_training_features", lambda device: built.append(1) or build(device))
    x = images_of(r, 1)

    def evaluations():
        before = len(built)
        for _ in range(3):
            predicted(ours, x)
            predicted(ours, x[:2])
            ours.train()
        return len(built) - before

    assert [evaluations(), evaluations()] == [1, 0]
    r.update(1)
    assert [evaluations(), evaluations()] == [1, 0]
    with torch.no_grad():
        next(ours.featurizer.parameters()).add_(0.1)
    assert evaluations() == 1


def test_by_default_an_answer_depends_on_its_image_alone(run):
    r = run()
    r.update(2)
    x = images_of(r, 1, count=8)
    whole = predicted(r.algorithm, x)
    torch.testing.assert_close(torch.cat([predicted(r.algorithm, each[None]) for each in x]), whole)
    torch.testing.assert_close(r.algorithm.predict(x.flip(0)).flip(0), whole)
    assert len(r.algorithm.memory) == sum(len(split) for i, split in enumerate(r.in_splits) if i != 1)


def test_sure_images_join_the_memory_after_their_batch(run):
    r = run(adanpc_beta=0.7)
    r.update(5)
    ours, memory, joined = r.algorithm.eval(), training_memory(r), 0
    for start in (0, 6, 12):
        x = images_of(r, 1, start)
        expected = expected_of(ours, x, memory)
        with torch.no_grad():
            assert_shares(ours.predict(x), expected)
            features = ours.featurizer(x).double()
        for feature, shares in zip(features, expected):
            if max(map(float, shares)) >= 0.7:
                memory.append((feature, shares.index(max(shares))))
                joined += 1
        assert len(ours.memory) == len(memory)
    assert 0 < joined < 18


@pytest.mark.parametrize("end", ["train", "eval"])
def test_what_joined_is_gone_when_the_evaluation_ends(run, end):
    r = run(adanpc_beta=0.0)
    r.update(2)
    ours, x = r.algorithm, images_of(r, 1)
    first = predicted(ours, x)
    with torch.no_grad():
        again = ours.predict(x)
    assert not torch.allclose(first, again)  # each image is now its own nearest neighbour
    getattr(ours, end)()
    assert torch.equal(predicted(ours, x), first)


def test_in_training_mode_nothing_joins_and_the_memory_is_that_of_eval_mode(run):
    ours = run(adanpc_beta=0.0).algorithm
    evaluated = copy.deepcopy(ours)
    evaluated.eval()._present_memory(torch.device("cpu"))
    for _ in range(2):
        ours.predict(torch.rand(3, 3, 32, 32))
        assert torch.equal(ours.memory, evaluated.memory)


def loaded(state, hparams):
    """As `domainfusion predict` does: outside a run, by weights alone."""
    context._current = context.TrainingContext()
    torch.manual_seed(9)
    made = host.algorithms.AdaNPC((3, 32, 32), 4, 2, hparams)
    missing, unexpected = made.load_state_dict(state, strict=False)
    assert not missing and not unexpected
    return made


@pytest.mark.parametrize("average", ["none", "ema", "swad"])
def test_a_saved_model_has_the_memory_of_its_weights(run, average):
    r = run(weight_average=average, weight_average_start=1, weight_average_decay=0.5, adanpc_beta=0.0)
    r.update(4)
    ours, x = r.algorithm, images_of(r, 1)
    answers = predicted(ours, x)
    ours.train()  # what has joined is not saved
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    other = loaded(torch.load(file, weights_only=True), {**r.hparams, "weight_average": "none"})
    assert torch.equal(predicted(other, x), answers)
    assert torch.equal(predicted(pickle.loads(pickle.dumps(other)), x), answers)
    assert torch.equal(predicted(loaded(other.state_dict(), r.hparams), x), answers)


def test_a_memory_of_other_weights_is_not_saved(run):
    r = run()
    predicted(r.algorithm, images_of(r, 1))
    assert len(r.algorithm.state_dict()["_extra_state"]) > 0
    r.update(1)
    assert len(r.algorithm.state_dict()["_extra_state"]) == 0


def test_outside_a_run_the_queue_answers(small):
    for batch in net.minibatches(3):
        small.update(batch)
    x = net.minibatches(4)[3][0][0]
    queue = list(zip(small.queue, small.queue_labels.tolist()))
    shares = [share_of_votes(f, queue, 100, 0.1, net.CLASSES) for f in net.features(net.flat(small), x)]
    assert_shares(predicted(small, x), shares)


class Augmented(TinyDigits):
    """Its transform draws from torch's global generator, as torchvision's do."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.datasets = [Noisy(*environment.tensors) for environment in self.datasets]


class Noisy(torch.utils.data.TensorDataset):
    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x + 0.3 * torch.rand(x.shape), y


def test_the_memory_is_seeded_by_the_run_and_moves_no_random_number(run):
    r = run(dataset=Augmented)
    x = r.dataset[1].tensors[0][:4]
    before = torch.get_rng_state()
    first = predicted(r.algorithm, x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    r.algorithm._forget()
    assert torch.equal(predicted(r.algorithm, x), first)


def test_predictions_change_neither_weights_nor_mode(run):
    ours = run(adanpc_beta=0.0).algorithm
    before = copy.deepcopy(ours.network.state_dict())
    ours.eval().predict(torch.rand(3, 3, 32, 32))
    assert not any(module.training for module in ours.modules())
    ours.train().predict(torch.rand(3, 3, 32, 32))
    assert all(module.training for module in ours.featurizer.modules())
    assert all(torch.equal(before[name], value) for name, value in ours.network.state_dict().items())


def test_evaluations_are_counted_with_the_memory(run):
    values = host.hparams_registry.default_hparams("AdaNPC", "Debug28")
    args = {"dataset": "Debug28", "algorithm": "AdaNPC", "test_envs": [0], "holdout_fraction": 0.2, "steps": 1}
    assert counting.count(args, values, [20, 30, 40]).evaluated == 90 + 24 + 32


@pytest.mark.parametrize("hparams, sentence", [
    ({"adanpc_queue": 0}, "The hparam adanpc_queue is 0, but must be a whole number from 1"),
    ({"adanpc_temperature": 0}, "The hparam adanpc_temperature is 0, but must be a number above 0"),
])  # fmt: skip
def test_what_it_cannot_do_is_said_before_training(hparams, sentence):
    with pytest.raises(InputError, match=sentence):
        net.algorithm("AdaNPC", **hparams)
