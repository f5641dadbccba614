"""An average of the weights for every algorithm of the host: hparams `weight_average`, `…_start`, `…_decay`, `swad_…`.

Training goes on with the raw weights. The average takes their place where a run is judged and saved:

- between the host's `eval()` and `train()`, which is where it computes accuracies; `train()` puts the raw weights back;
- in `state_dict()`, which the host writes into model.pkl.

What happens inside `update` sees the raw weights, also in eval mode: DomainFusion's choice of generated images, for
example. Before `weight_average_start` there is no average, and the raw weights are evaluated and saved.

The average is over every floating-point parameter and buffer of the algorithm. So the running statistics of batch
normalisation are averaged like weights, as in the code of Arpit et al. (2022). They are not computed anew on training
images, as stochastic weight averaging does, because the host offers no pass over them. Integer buffers stay raw.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from . import hparams as table
from .classifier_hparams import WEIGHT_AVERAGE
from .loss_valley import LossValley, is_checkpoint, read_validation_splits, validation_loss

NONE = "none"


class RunningAverage:
    """The average of tensors by name over the steps of a run.

    kind "sma": the mean of the weights after `start` steps and after every later one (Arpit et al., NeurIPS 2022: a
    simple moving average, from iteration 100 on). kind "ema": decay · average + (1 - decay) · weights, which begins
    with the weights after `start` steps.
    """

    def __init__(self, kind: str, start: int, decay: float):
        self.kind, self.start, self.decay = kind, start, decay
        self.steps = 0
        self.values: dict[str, Tensor] = {}  # empty before the start

    @torch.no_grad()
    def add(self, tensors: dict[str, Tensor]) -> None:
        """Take in the weights after one more step. Tensors that are new or of another shape begin with themselves."""
        self.steps += 1
        if self.steps < self.start:
            return
        share = 1 / (self.steps - self.start + 1) if self.kind == "sma" else 1 - self.decay
        before, self.values = self.values, {}
        for name, new in tensors.items():
            average = before.get(name)
            if average is None or average.shape != new.shape:
                self.values[name] = new.detach().clone()
            else:
                self.values[name] = average.lerp_(new, share)


#: What every algorithm is. Naming the host's `Algorithm` here would import the host, and the host imports us.
MODULE: Any = torch.nn.Module


class WeightAveraged(MODULE):
    """Mixed in before an algorithm's class by `averaged`."""

    averages: Any  # the algorithm's own class

    def __init__(self, input_shape: tuple, num_classes: int, num_domains: int, hparams: dict[str, Any]):
        values = {row.name: hparams.get(row.name, row.default) for row in WEIGHT_AVERAGE}
        table.check_values(values)
        self._hparams_of_average = values
        self._average = _average_for(values)
        self._raw: dict[str, Tensor] | None = None  # the raw weights while the average is in their place
        self._in_update = False
        self._steps = 0
        super().__init__(input_shape, num_classes, num_domains, hparams)

    def update(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The algorithm's own step on the raw weights; then they are taken into the average."""
        self._restore()
        self._in_update = True
        try:
            values = super().update(*args, **kwargs)
            self._take_in()
        finally:
            self._in_update = False
        if not self.training:
            self._show()
        return values

    def _take_in(self) -> None:
        """The weights after this step; for SWAD also their validation loss, where the host evaluates."""
        self._steps += 1
        self._average.add(dict(self._tensors()))
        if isinstance(self._average, LossValley) and is_checkpoint(self._steps - 1):
            loss = validation_loss(self)
            if loss is not None:
                self._average.close(loss)

    def read_as_in_update(self) -> None:
        """For a step that is replayed and not made (`resuming`): the loaders of the validation loss are read."""
        self._steps += 1
        if isinstance(self._average, LossValley) and is_checkpoint(self._steps - 1):
            read_validation_splits()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        self._restore()
        result = super().train(*args, **kwargs)
        if not self.training:
            self._show()
        return result

    def eval(self) -> Any:
        result = super().eval()  # the host's TRM has an `eval` of its own, which does not call `train`
        self._show()
        return result

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> Any:
        """The algorithm's state dict with the average in the place of the raw weights."""
        state = super().state_dict(*args, prefix=prefix, **kwargs)
        if not self._in_update:
            first_names = {id(tensor): name for name, tensor in self._tensors()}
            for name, tensor in self._tensors(every_name=True):
                if prefix + name in state and first_names[id(tensor)] in self._average.values:
                    state[prefix + name] = self._average.values[first_names[id(tensor)]].clone()
        return state

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load raw weights. The average begins anew: a state dict does not say how many steps are in its weights."""
        self._raw = None
        self._average = _average_for(self._hparams_of_average)
        return super().load_state_dict(*args, **kwargs)

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        """`to`, `cuda`, `double` …: the average moves with the weights."""
        self._average.values = {name: fn(tensor) for name, tensor in self._average.values.items()}
        if self._raw is not None:
            self._raw = {name: fn(tensor) for name, tensor in self._raw.items()}
        return super()._apply(fn, *args, **kwargs)

    def _tensors(self, every_name: bool = False) -> Iterator[tuple[str, Tensor]]:
        """The floating-point parameters and buffers, once each, or under every name that they have."""
        for tensors in (self.named_parameters, self.named_buffers):
            for name, tensor in tensors(remove_duplicate=not every_name):
                if tensor.is_floating_point():
                    yield name, tensor

    @torch.no_grad()
    def _show(self) -> None:
        if self._raw is not None or self._in_update or not self._average.values:
            return
        self._raw = {}
        for name, tensor in self._tensors():
            if name in self._average.values:
                self._raw[name] = tensor.detach().clone()
                tensor.copy_(self._average.values[name])

    @torch.no_grad()
    def _restore(self) -> None:
        if self._raw is None:
            return
        for name, tensor in self._tensors():
            if name in self._raw:
                tensor.copy_(self._raw[name])
        self._raw = None

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles name the algorithm's own class, because the mixed class has no module to be found in."""
        reduced: Any = super().__reduce_ex__(protocol)
        return _without_init, (self.averages,), *reduced[2:]


def _average_for(values: dict[str, Any]) -> RunningAverage | LossValley:
    if values["weight_average"] == "swad":
        return LossValley(values["swad_converge"], values["swad_tolerance"], values["swad_ratio"])
    return RunningAverage(values["weight_average"], values["weight_average_start"], values["weight_average_decay"])


def class_for(algorithm: Any, *args: Any, **kwargs: Any) -> Any:
    """The class to construct for the host's `algorithm(input_shape, num_classes, num_domains, hparams)`.

    It is `algorithm` itself unless its hparams ask for an average, or when it is made without arguments by copy.
    """
    values = kwargs.get("hparams", args[3] if len(args) > 3 else {})
    if values.get("weight_average", NONE) == NONE or issubclass(algorithm, WeightAveraged):
        return algorithm
    return averaged(algorithm)


@functools.cache
def averaged(algorithm: Any) -> Any:
    """`algorithm` with WeightAveraged before it, under its own name."""
    return type(algorithm.__name__, (WeightAveraged, algorithm), {"averages": algorithm})


def _without_init(algorithm: Any) -> Any:
    mixed = averaged(algorithm)
    return mixed.__new__(mixed)
