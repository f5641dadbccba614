"""Candidates of the first round, shared by the runs of a sweep: the hparam `candidate_cache`, a folder. Ours.

A first round starts from raw images, and line 7 of Algorithm 1 does not use θ. With this hparam a candidate's seed
depends on its image and not on the run. All hparam draws, trials and test environments then need the same candidates,
and each candidate is generated once.

    <folder>/ab/ab12….safetensors   the scaled latents (C, h, w) of one candidate

The name is a SHA-256 of everything that the latents depend on. The number of candidates is not part of it: a run with
N_c = 5 finds the three candidates that a run with N_c = 3 has made. A cached candidate equals a newly generated one up
to float noise, because the batch size may have been another.

The price: runs that share first-round candidates are less independent of one another. This holds for trials too.
A run reads and writes only entries of its own training images, and finds them by their pixels. The folder may also hold
images of this run's test environment, from runs that trained on that environment. This run never looks them up.
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

from ..digests import tensors_digest
from ..errors import InputError
from ..files import write_atomically
from ..pixels import to_store
from ..seeding import seed_of

if TYPE_CHECKING:  # diffusers takes seconds to import
    from ..diffusion.candidates import Candidates, CandidateSampler

FORMAT = 1


def shared_seeds(image: Tensor, prompt: str, candidates: int) -> list[int]:
    """One first-round seed per candidate of an image, (3, S, S) uint8. It does not depend on the run or on N_c."""
    digest = tensors_digest({"image": image})
    return [seed_of("shared candidate", digest, prompt, j) for j in range(candidates)]


class CandidateCache:
    """Reads candidates from the folder, has the sampler generate the missing ones, and writes these to the folder.

    Any number of jobs may use one folder at once. Entries are written atomically, and jobs that write the same entry
    write the same candidate. A damaged entry is generated again, with one printed line. If the disk is full, this is
    printed once and the run goes on without writing. Raises InputError if the folder cannot be made.
    """

    def __init__(self, folder: str, sampler: "CandidateSampler", identity: dict[str, Any]) -> None:
        """identity: everything except image, prompt and seed that a candidate's latents depend on (plain JSON values).
        See `identity.candidate_identity`.
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
        """As `CandidateSampler.sample`. The images must have the store's 256 levels: their uint8 pixels are the key."""
        paths = [
            [self._path(digest, int(label), seed) for seed in row]
            for digest, label, row in zip(_digests(images), labels, seeds)
        ]
        found = {(i, j): self._read(path) for i, row in enumerate(paths) for j, path in enumerate(row)}
        missing = [place for place, latents in found.items() if latents is None]
        if missing:
            used = sorted({i for i, _ in missing})  # only images with a missing candidate are encoded
            sources = torch.tensor([used.index(i) for i, _ in missing])
            made = self.sampler.latents(images[used], labels[used], sources, [seeds[i][j] for i, j in missing])
            for (i, j), latents in zip(missing, made):
                found[i, j] = latents
                self._write(paths[i][j], latents)
        ldm = self.sampler.ldm
        latents = torch.stack([latents.to(ldm.device) for latents in found.values() if latents is not None])
        return self.sampler.decode(latents.unflatten(0, (len(images), len(seeds[0]))))

    def _path(self, image: str, label: int, seed: int) -> Path:
        """image: the digest of its pixels and size. The seed depends on image, prompt and candidate number."""
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
        if not self.writes or not latents.isfinite().all():  # `decode` raises for these
            return
        tensors = {"latents": latents.cpu().contiguous()}
        try:
            write_atomically(path, safetensors.torch.save(tensors, {"digest": tensors_digest(tensors)}))
        except InputError as error:
            self.writes = False
            print(f"{error} The run goes on; the candidates that it makes from here on are not shared.")


def _digests(images: Tensor) -> list[str]:
    return [tensors_digest({"image": image}) for image in to_store(images)]
