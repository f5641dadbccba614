"""Candidates made on several devices of a node at once: the hparam `generation_devices`. Ours.

Every device has a process of its own with its own φ. The batches of a part of a round are handed out in turn. A
candidate has a seed of its own and stays in its batch, so the images do not depend on the number of devices. The
classifier judges the candidates in the run's own process, in the order of the batches.
"""

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..diffusion.evaluations import COUNT
from ..errors import InputError
from .dataset import Batch

if TYPE_CHECKING:  # diffusers takes seconds to import
    from ..diffusion.candidates import Candidates, CandidateSampler

Made = tuple[Tensor, Tensor, int]  # images and latents of candidates, on the CPU; evaluations of the U-Net

IN_FLIGHT = 2  # batches of each device that are being made or wait: more would only take memory
DEATHS = 3  # of one batch's processes, after which the run gives up


def devices_of(value: str | list[str] | None, own: torch.device) -> list[str]:
    """The devices that the hparam names: "all" means every GPU. Empty if it is null; then the run's own is used.

    own: the run's device. Raises InputError for a device that this machine does not have or that is of another kind
    than the run's, and for "all" without a GPU.
    """
    if value is None:
        return []
    count = torch.cuda.device_count()
    if value == "all":
        if not count:
            raise InputError(
                'The hparam generation_devices is "all", and there is no GPU here: give null, or a list such as '
                '["cpu", "cpu"].'
            )
        return [f"cuda:{i}" for i in range(count)]
    for name in value:
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise InputError(
                f"The hparam generation_devices names {name!r}, which is no device: correct it."
            ) from error
        if device.type != own.type:
            raise InputError(
                f"The hparam generation_devices names {name!r}, and the classifier is trained on a {own.type} device: "
                "name devices of one kind, so that all compute in the same precision."
            )
        if device.type == "cuda" and (device.index or 0) >= count:
            raise InputError(
                f"The hparam generation_devices names {name!r}, and this machine has {count} GPUs: name fewer, or give "
                '"all".'
            )
    return list(value)


class DevicePool:
    """Makes candidates as a sampler does, on several devices.

    sampler: of the run. devices: as torch names them; a name may come twice, for two processes on one device.
    hparams, class_names: every process loads φ and makes its sampler from them, as the run did.
    The processes start with the first batch and end with this process.

    A process that dies is named in one printed line and started again, and its batch is made again. Raises InputError
    if that happens DEATHS times to one batch, and as `CandidateSampler.sample` does.
    """

    def __init__(
        self, sampler: "CandidateSampler", devices: Sequence[str], hparams: dict[str, Any], class_names: list[str]
    ):
        self.devices, self._arguments = list(devices), (hparams, class_names)
        self.ldm, self.prompts = sampler.ldm, sampler.prompts
        self._executors: list[ProcessPoolExecutor | None] = [None] * len(self.devices)
        self._next = 0  # the place of the device whose turn it is
        self._coming: Iterator[Batch] = iter(())
        self._ahead: dict[tuple, tuple[int, Batch, Future]] = {}

    def ahead(self, batches: Iterator[Batch]) -> None:
        """Begin with these batches, a few of them for each device. `sample` will be called with all, in this order."""
        self._coming = batches
        self._begin()

    def _begin(self) -> None:
        room = max(0, IN_FLIGHT * len(self.devices) - len(self._ahead))
        for batch in itertools.islice(self._coming, room):
            self._ahead[_key(batch)] = self._submit(batch)

    def sample(self, images: Tensor, labels: Tensor, seeds: list[list[int]]) -> "Candidates":
        """As `CandidateSampler.sample`."""
        from ..diffusion.candidates import Candidates

        batch = (images, labels, seeds)
        key = _key(batch)
        place, batch, future = self._ahead.pop(key) if key in self._ahead else self._submit(batch)
        self._begin()
        for death in range(1, DEATHS + 1):
            try:
                *made, evaluations = future.result()
                COUNT.add(evaluations)
                return Candidates(*(part.to(self.ldm.device) for part in made))
            except BrokenProcessPool:
                print(
                    f"The process that generates on {self.devices[place]} has ended: it is started again, and its "
                    f"images are made again (attempt {death} of {DEATHS})."
                )
                if death < DEATHS:
                    place, batch, future = self._again(place, batch)
        raise InputError(
            f"The process that generates on {self.devices[place]} has ended {DEATHS} times with the same images, as "
            "when the memory is used up: lower generation_batch, or name fewer devices in generation_devices."
        )

    def _submit(self, batch: Batch) -> tuple[int, Batch, Future]:
        place, self._next = self._next, (self._next + 1) % len(self.devices)
        return self._submit_to(place, batch)

    def _submit_to(self, place: int, batch: Batch) -> tuple[int, Batch, Future]:
        images, labels, seeds = batch
        request = (images.cpu(), labels.cpu(), seeds)
        try:
            return place, batch, self._executor(place).submit(_sample, *request)
        except BrokenProcessPool as error:  # it died while it had nothing to do
            future: Future = Future()
            future.set_exception(error)
            return place, batch, future

    def _again(self, place: int, batch: Batch) -> tuple[int, Batch, Future]:
        """Start the process of a place anew, and hand it all that the former one had not finished."""
        self._executors[place] = None
        again = self._submit_to(place, batch)
        for key, (where, waiting, future) in self._ahead.items():
            if where == place and (not future.done() or future.exception() is not None):
                self._ahead[key] = self._submit_to(place, waiting)
        return again

    def _executor(self, place: int) -> ProcessPoolExecutor:
        executor = self._executors[place]
        if executor is None:
            threads = max(1, torch.get_num_threads() // len(self.devices))
            executor = self._executors[place] = ProcessPoolExecutor(
                1,
                multiprocessing.get_context("spawn"),  # CUDA does not survive a fork
                _start,
                (self.devices[place], threads, *self._arguments),
            )
        return executor


_sampler: "CandidateSampler | None" = None  # of a process of the pool


def _start(device: str, threads: int, hparams: dict[str, Any], class_names: list[str]) -> None:
    """What a process of the pool does first. It ends with the run, not by a signal that a cluster sends to all."""
    from ..diffusion.candidates import CandidateSampler
    from ..diffusion.prompted import PromptedModel

    global _sampler
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR2", None)):
        if number is not None:
            signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = PromptedModel.load(hparams, class_names, torch.device(device))
    _sampler = CandidateSampler.of(model, hparams)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _sample(images: Tensor, labels: Tensor, seeds: list[list[int]]) -> Made:
    assert _sampler is not None
    device, before = _sampler.ldm.device, COUNT.number
    candidates = _sampler.sample(images.to(device), labels.to(device), seeds)
    return candidates.images.cpu(), candidates.latents.cpu(), COUNT.number - before


def _key(batch: tuple[Any, Any, list[list[int]]]) -> tuple:
    return tuple(seed for row in batch[2] for seed in row)
