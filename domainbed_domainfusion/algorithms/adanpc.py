"""AdaNPC (Zhang et al., ICML 2023): a classifier without parameters, the nearest neighbours among training features."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader

from ..digests import weights_digest
from ..hosting import context, host
from ..hosting import hparams as table
from ..seeding import generator_of, preserved_rng, seed_of

EPSILON = 1e-5  # added to each probability, as in the authors' code
TEMPERATURES = 1.0, 0.1  # of training, at its first and at its last step
BATCH = 64  # images at once when the memory is built, the host's evaluation batch


class AdaNPC(host.algorithms.ERM):
    """p(class | x) = share of the class in the votes of the nearest features to that of x, by cosine; see `votes`.

    In training the neighbours come from a queue of the last `adanpc_queue` features of training images, with their
    labels. The loss is −log p(label). After the step the minibatch's features enter the queue and push out the oldest.

    `predict` looks for neighbours in a memory: the features of all images of the training environments' in-splits. It
    is built at the first prediction after the weights have changed. Outside a training run there are no in-splits: then
    the memory is that of the loaded state_dict, or, where none was loaded, the queue.

    With `adanpc_beta` up to 1, a prediction in eval mode appends those images of its batch to the memory whose highest
    probability is at least that, under their predicted class. They stay until `eval()` or `train()` is called, as the
    host does around each split. Above 1, the default, an answer depends on its image alone.

    The host's classifier is built, but neither trained nor used.
    """

    queue: Tensor  # (adanpc_queue, features) of length 1
    queue_labels: Tensor
    queue_place: Tensor  # of the oldest feature
    memory: Tensor | None  # (n, features) of length 1
    memory_labels: Tensor | None
    _built: int  # how many rows are training images; predictions have appended the others
    _memory_of: str | None  # the digest of its weights; None: those loaded with it
    _compared: bool  # whether that has been compared in this evaluation

    def __init__(self, input_shape: tuple, num_classes: int, num_domains: int, hparams: dict[str, Any]):
        table.check_values(hparams)
        super().__init__(input_shape, num_classes, num_domains, hparams)
        context.require_run()
        self.num_classes, self.step, self.total_steps = num_classes, 0, context.current().total_steps
        self.run_seed = context.current().seed
        size, width = hparams["adanpc_queue"], self.featurizer.n_outputs
        generator = generator_of(self.run_seed, "AdaNPC queue")
        self.register_buffer("queue", F.normalize(torch.randn(size, width, generator=generator)))
        self.register_buffer("queue_labels", torch.arange(size) % num_classes)
        self.register_buffer("queue_place", torch.zeros((), dtype=torch.long))
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self.optimizer, factor=0.5, patience=500, cooldown=500, min_lr=1e-6
        )
        self._forget()

    def update(self, minibatches: list, unlabeled: object = None) -> dict[str, float]:
        """One step on [(x, y)] per domain, x: (B, C, H, W), y: (B,); returns the loss."""
        x, y = (torch.cat(parts) for parts in zip(*minibatches))
        features = F.normalize(self.featurizer(x))
        first, last = TEMPERATURES
        temperature = first + (last - first) * min(self.step / self.total_steps, 1)
        neighbours = self.hparams["adanpc_train_neighbours"]
        found = votes(features, self.queue, self.queue_labels, neighbours, temperature, self.num_classes)
        loss = F.nll_loss((found + EPSILON).log(), y)

        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step(loss.item())
        self._enqueue(features.detach(), y)
        self._forget()
        self.step += 1
        return {"loss": loss.item()}

    def _enqueue(self, features: Tensor, y: Tensor) -> None:
        size = len(self.queue)
        features, y = features[-size:], y[-size:]
        places = (self.queue_place + torch.arange(len(y), device=y.device)) % size
        self.queue[places], self.queue_labels[places] = features, y
        self.queue_place.copy_((self.queue_place + len(y)) % size)

    def predict(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, classes): the logarithm of the probabilities, each plus 1e-5."""
        memory, labels = self._present_memory(x.device)
        features = F.normalize(self.featurizer(x))
        neighbours, temperature = self.hparams["adanpc_neighbours"], self.hparams["adanpc_temperature"]
        found = votes(features, memory, labels, neighbours, temperature, self.num_classes)
        if not self.training:
            confidence, predicted = found.detach().max(1)
            sure = confidence >= self.hparams["adanpc_beta"]
            if sure.any():
                self.memory = torch.cat([memory, features.detach()[sure]])
                self.memory_labels = torch.cat([labels, predicted[sure]])
        return (found + EPSILON).log()

    def _present_memory(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The memory, built anew if it is not that of the present weights. They are compared once in an evaluation."""
        memory, labels = self.memory, self.memory_labels
        if not self._compared:
            present = weights_digest(self.featurizer)
            if self._memory_of not in (None, present):
                memory = None
            self._memory_of, self._compared = present, True
        if memory is None or labels is None:
            memory, labels = self._training_features(device)
            self._built = len(memory)
        self.memory, self.memory_labels = memory.to(device), labels.to(device)
        return self.memory, self.memory_labels

    @torch.no_grad()
    def _training_features(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(n, features) of length 1 and (n,) labels, of the in-splits with the host's transform, seeded by the run."""
        run = context.current()
        if not run.in_splits:
            return self.queue.clone(), self.queue_labels.clone()
        mode, parts = self.featurizer.training, []
        self.featurizer.eval()
        with preserved_rng():
            torch.manual_seed(seed_of(self.run_seed, "AdaNPC memory"))
            images: Any = ConcatDataset([in_split.split for in_split in run.in_splits])
            for x, y in DataLoader(images, BATCH, num_workers=getattr(run.dataset, "N_WORKERS", 0)):
                parts.append((F.normalize(self.featurizer(x.to(device))), y.to(device)))
        self.featurizer.train(mode)
        features, labels = (torch.cat(each) for each in zip(*parts))
        return features, labels

    def _forget(self) -> None:
        """There is no memory: the weights are about to change, or have changed."""
        self.memory = self.memory_labels = self._memory_of = None
        self._built, self._compared = 0, False

    def train(self, mode: bool = True) -> "AdaNPC":
        """As for every module. What predictions have appended is dropped."""
        if self.memory is not None and self.memory_labels is not None:
            self.memory, self.memory_labels = self.memory[: self._built], self.memory_labels[: self._built]
        self._compared = False
        return super().train(mode)

    def get_extra_state(self) -> Tensor:
        """What `state_dict` has beside weights and queue, the memory: (n, features + 1), the last column the labels."""
        if self.memory is None or self.memory_labels is None:
            return self.queue.new_zeros(0, self.queue.shape[1] + 1)
        labels = self.memory_labels[: self._built, None].to(self.memory)
        return torch.cat([self.memory[: self._built], labels], dim=1)

    def set_extra_state(self, state: Tensor) -> None:
        self._forget()
        if len(state):
            self.memory, self.memory_labels, self._built = state[:, :-1].clone(), state[:, -1].long(), len(state)


def votes(features: Tensor, memory: Tensor, labels: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    """(B, classes), a row sums to 1. The k rows of memory (n, features) with the highest cosine to a row of features
    (B, features) vote for their labels (n,) with weights softmax(cosine / temperature). All rows have length 1.
    """
    cosines, nearest = (features @ memory.T).topk(min(k, len(memory)))
    return features.new_zeros(len(features), classes).scatter_add(
        1, labels[nearest], (cosines / temperature).softmax(1)
    )
