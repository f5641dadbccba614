"""Candidates of the first round, shared by the runs of a sweep: the hparam `candidate_cache`, a folder. Ours.

A first round starts from raw images, and θ has no part in Algorithm 1's line 7: with seeds that follow from the image
in place of the run, all hparam draws, trials and test environments ask for the same candidates. They are made once.

    <folder>/ab/ab12….safetensors   the scaled latents (C, h, w) of one candidate, by the SHA-256 of all that decides it

So a run that asks for five candidates finds the three that another has made. A candidate from the folder equals
the one that this run would have made, up to float noise: it may have been made in a batch of another size.

The price: runs that share first-round candidates are less independent of one another, trials too.
What a run looks up or writes are training images of its own in-splits, by their pixels. An image of a test environment
is in the folder where another run trained on it, but only a run that trains on the same pixels ever asks for it.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from ..errors import InputError
from ..files import write_atomically
from ..pixels import to_store
from ..seeding import seed_of
from .digests import tensors_digest

if TYPE_CHECKING:  # diffusers takes seconds to import
    from ..diffusion.candidates import Candidates, CandidateSampler

FORMAT = 1


def shared_seeds(image: Tensor, prompt: str, candidates: int) -> list[int]:
    """A first-round seed per candidate of an image, (3, S, S) uint8, the same in every run and for every N_c."""
    digest = tensors_digest({"image": image})
    return [seed_of("shared candidate", digest, prompt, j) for j in range(candidates)]


class CandidateCache:
    """Takes candidates from the folder, has the sampler make those that are missing, and writes them there.

    Any number of jobs may use a folder at once: an entry is written whole, and whoever writes it writes the same.
    A damaged entry is made again with one line; when the disk is full this says so once and the run goes on without
    writing. Raises InputError if the folder cannot be made.
    """

    def __init__(self, folder: str, sampler: "CandidateSampler", identity: dict[str, Any]) -> None:
        """identity: all that a candidate's latents depend on beside its image, prompt and seed, as plain JSON values;
        see `identity.candidate_identity`.
        """
        self.folder, self.sampler = Path(folder), sampler
        self.writes = True
        self._settings = {"format": FORMAT, **identity}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"The hparam candidate_cache names {folder}, which cannot be made or is no folder "
                f"({error.strerror}): give a folder that can be written, or null."
            ) from error

    def sample(self, images: Tensor, labels: Tensor, seeds: list[list[int]]) -> "Candidates":
        """As `CandidateSampler.sample`; images are of the 256 levels that the store holds, so their bytes name them."""
        paths = [
            [self._path(digest, int(label), seed) for seed in row]
            for digest, label, row in zip(_digests(images), labels, seeds)
        ]
        found = {(i, j): self._read(path) for i, row in enumerate(paths) for j, path in enumerate(row)}
        missing = [place for place, latents in found.items() if latents is None]
        if missing:
            used = sorted({i for i, _ in missing})  # only these are encoded
            sources = torch.tensor([used.index(i) for i, _ in missing])
            made = self.sampler.latents(images[used], labels[used], sources, [seeds[i][j] for i, j in missing])
            for (i, j), latents in zip(missing, made):
                found[i, j] = latents
                self._write(paths[i][j], latents)
        ldm = self.sampler.ldm
        latents = torch.stack([latents.to(ldm.device) for latents in found.values() if latents is not None])
        return self.sampler.decode(latents.unflatten(0, (len(images), len(seeds[0]))))

    def _path(self, image: str, label: int, seed: int) -> Path:
        """image: digest of its pixels and size. The seed follows from image, prompt and candidate number."""
        candidate = {**self._settings, "image": image, "prompt": self.sampler.prompts.texts[label], "seed": seed}
        key = hashlib.sha256(json.dumps(candidate, sort_keys=True).encode()).hexdigest()
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, path: Path) -> "Tensor | None":
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                latents, digest = file.get_tensor("latents"), (file.metadata() or {}).get("digest")
        except (safetensors.SafetensorError, OSError):
            digest = None
        if digest is None or digest != tensors_digest({"latents": latents}):
            print(f"{path} is damaged: its candidate is generated again.")
            return None
        return latents

    def _write(self, path: Path, latents: Tensor) -> None:
        if not self.writes or not latents.isfinite().all():  # what is not finite is refused by `decode`
            return
        tensors = {"latents": latents.cpu().contiguous()}
        try:
            write_atomically(path, safetensors.torch.save(tensors, {"digest": tensors_digest(tensors)}))
        except InputError as error:
            self.writes = False
            print(f"{error} The run goes on; the candidates that it makes from here on are not shared.")


def _digests(images: Tensor) -> list[str]:
    return [tensors_digest({"image": image}) for image in to_store(images)]
