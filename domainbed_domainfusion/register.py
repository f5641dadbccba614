"""The one import that DomainBed needs: it adds our algorithms, hparams, datasets and launchers to the host.

The line `import domainbed_domainfusion.register` at the end of the host's `algorithms.py` runs in every process of the
host (train, sweep, collect_results, its tests) before any algorithm or dataset is looked up. It is idempotent.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .diffusion.evaluations import COUNT
from .errors import sentence_hook
from .hosting import context, host, hparams

_MARK = "_domainfusion_registered"


def register() -> None:
    """Add everything to the host; idempotent. Raises InputError for a bad `--hparams` on the host's command line."""
    print_input_errors_as_sentences()
    if getattr(host.algorithms, _MARK, False):
        return
    setattr(host.algorithms, _MARK, True)
    _add_algorithms()
    _add_weight_average()
    _add_hparams()
    _add_datasets()
    _add_launchers()
    _add_backbones()
    _report_to_context()
    from .hosting import checks

    checks.check_command_line()
    _make_resumable()


def print_input_errors_as_sentences() -> None:
    """In one of the host's scripts, let an InputError end the process with its sentence and without a traceback.

    The host's scripts are not ours to change, so this sets `sys.excepthook`. train has a Tee at `sys.stderr`, which
    writes the sentence to err.txt as well. Idempotent; does nothing in other programs, such as notebooks.
    """
    if context.running_script() is not None and not hasattr(sys.excepthook, _MARK):
        hook = sentence_hook(sys.excepthook)
        setattr(hook, _MARK, True)
        sys.excepthook = hook


def _add_algorithms() -> None:
    from .algorithms.adanpc import AdaNPC
    from .algorithms.advstyle import AdvStyle
    from .algorithms.augmented import AugMix, RandAugment
    from .algorithms.cdga import CDGA
    from .algorithms.diffusion_tta import DiffusionTTA
    from .algorithms.domainfusion import DomainFusion
    from .algorithms.drm import DRM
    from .algorithms.dsi import DSI
    from .algorithms.hessian_alignment import HGP, Hutchinson
    from .algorithms.itta import ITTA
    from .algorithms.pego import PEGO
    from .algorithms.sagm import SAGM
    from .algorithms.sam import SAM
    from .algorithms.sda import SDA
    from .algorithms.synthetic import Synthetic
    from .algorithms.tram import TRAM
    from .algorithms.udim import UDIM
    from .algorithms.zero_shot import DiffusionClassifier, TextToImageClassifier

    flat_minima = (SAM, SAGM, TRAM, UDIM)
    rivals = (DRM, HGP, Hutchinson, AdvStyle, AdaNPC, ITTA, PEGO)
    controls = (RandAugment, AugMix)
    with_diffusion = (DomainFusion, Synthetic, CDGA)
    at_test_time = (DSI, SDA, DiffusionTTA)
    zero_shot = (DiffusionClassifier, TextToImageClassifier)
    for algorithm in flat_minima + rivals + controls + with_diffusion + at_test_time + zero_shot:
        setattr(host.algorithms, algorithm.__name__, algorithm)
        host.algorithms.ALGORITHMS.append(algorithm.__name__)


def _add_weight_average() -> None:
    """Let the hparam `weight_average` decide the class of every algorithm that is constructed."""
    from .hosting.weight_average import class_for

    def __new__(cls, *args, **kwargs):
        return object.__new__(class_for(cls, *args, **kwargs))

    host.algorithms.Algorithm.__new__ = staticmethod(__new__)


def _add_hparams() -> None:
    registry = host.hparams_registry
    registry.default_hparams = _with_defaults(registry.default_hparams)
    registry.random_hparams = _with_draws(registry.random_hparams)


def _with_defaults(default_hparams: Callable) -> Callable:
    @functools.wraps(default_hparams)
    def wrapped(algorithm, dataset):
        values = default_hparams(algorithm, hparams.HOST_EQUIVALENT.get(dataset, dataset))
        return {**values, **hparams.added_defaults(algorithm, dataset)}

    return wrapped


def _with_draws(random_hparams: Callable) -> Callable:
    @functools.wraps(random_hparams)
    def wrapped(algorithm, dataset, seed):
        values = random_hparams(algorithm, hparams.HOST_EQUIVALENT.get(dataset, dataset), seed)
        return {**values, **hparams.added_draws(algorithm, dataset, seed)}

    return wrapped


def _add_datasets() -> None:
    from .data import own_datasets
    from .pocket.digit_styles import digit_styles_class

    dataset = digit_styles_class(host.datasets.MultipleDomainDataset)
    setattr(host.datasets, dataset.__name__, dataset)
    host.datasets.DATASETS.append(dataset.__name__)
    own_datasets.register_described()


def _add_launchers() -> None:
    from .sweeping.launchers import LAUNCHERS

    host.command_launchers.REGISTRY.update(LAUNCHERS)


def _add_backbones() -> None:
    from .hosting.backbones import featurizer_or

    host.networks.Featurizer = featurizer_or(host.networks.Featurizer)


def _report_to_context() -> None:
    """Let the host's constructors report what they build, and check the input that would fail late or hang."""
    from .data import own_datasets
    from .hosting import checks

    datasets, loaders = host.datasets, host.module("lib.fast_data_loader")

    def run_begins(dataset):
        context.dataset_built(dataset)
        checks.check_test_environments(dataset)
        own_datasets.leave_description(dataset)
        folder = context.current().output_dir
        COUNT.keep_in(None if folder is None else Path(folder))

    def image_folder(self, root, *args, **kwargs):
        checks.check_image_folder(root, getattr(self, "ENVIRONMENTS", None))

    def training_loader(self, dataset, weights, batch_size, num_workers):
        checks.check_batch(dataset, batch_size, weights)
        context.training_loader_built(dataset, batch_size)

    def evaluation_loader(self, dataset, *args, **kwargs):
        context.evaluation_loader_built(dataset, self)

    _before_construction(datasets.MultipleDomainDataset, run_begins)
    _before_init(datasets.MultipleEnvironmentImageFolder, image_folder)
    _before_init(loaders.InfiniteDataLoader, training_loader)
    _before_init(loaders.FastDataLoader, evaluation_loader)


def _make_resumable() -> None:
    """If DOMAINFUSION_RESUME asks for it: checkpoints in train, and incomplete jobs taken up by sweep."""
    from .resuming import hooks, incomplete
    from .sweeping.launchers import LAUNCHERS

    def jobs() -> list[Any]:
        from .sweeping import sweep_files

        return sweep_files.jobs_of_arguments(incomplete.sweep_arguments())

    hooks.protect_training()
    incomplete.take_up_incomplete(jobs, tuple(LAUNCHERS))


def _before_construction(cls: Any, call: Callable[[Any], None]) -> None:
    """Call `call(instance)` when `cls` or a subclass is constructed, before the `__init__` of any class.

    The host constructs its datasets with arguments. Without arguments `__new__` is called by copy and pickle, and a
    copy begins no run.
    """

    def __new__(new_class, *args, **kwargs):
        make = super(cls, new_class).__new__
        instance = make(new_class) if make is object.__new__ else make(new_class, *args, **kwargs)
        if args or kwargs:
            call(instance)
        return instance

    cls.__new__ = staticmethod(__new__)


def _before_init(cls: Any, call: Callable) -> None:
    """Call `call(instance, *arguments)` before `cls.__init__`."""
    original = cls.__init__

    @functools.wraps(original)
    def wrapped(self, *args, **kwargs):
        call(self, *args, **kwargs)
        original(self, *args, **kwargs)

    cls.__init__ = wrapped


register()
