"""Pictures of a run: some images with all their generated versions, in the job folder's `generated/`.

`gallery.json` names every version with its round, step, chosen candidates and the classifier's confidence in its class
as the round began, and counts the choices of all images.
"""

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from ..files import write_atomically
from ..pixels import from_store

#: p, the classifier's confidence in the true class: (images (B, 3, S, S) in [-1, 1], labels (B,)) → (B,) in [0, 1]
Confidence = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Gallery:
    """Keeps the versions of `per_domain` images of every training domain.

    `confidence` is asked for these images only, when their round is recorded; without it none is kept.
    Raises InputError when the disk is full; what was written before stays.
    """

    def __init__(self, job_folder: str, per_domain: int, class_names: list[str], confidence: Confidence | None = None):
        self.folder = Path(job_folder, "generated")
        self.per_domain = per_domain
        self.class_names = class_names
        self._confidence = confidence
        self._entries: dict = {}
        self._content: Counter = Counter()
        self._style: Counter = Counter()
        self._mixed = 0

    def record(self, number: int, step: int, replaced: dict, dataset) -> None:
        """Write round `number`'s version of the followed images, and the originals with the first round.

        replaced: key → (image uint8 (3, S, S), label, content, style); dataset: the GenerateDataset before the round.
        """
        for split in range(len(dataset.in_splits)):
            followed = [key for key in replaced if key[0] == split][: self.per_domain]
            for key in followed:
                image, label, content, style = replaced[key]
                if key not in self._entries:
                    self._entries[key] = self._new_entry(key, dataset, label)
                    self._add_version(key, 0, 0, dataset.version(key)[0], label)
                self._add_version(key, number, step, image, label, content=content, style=style)
        for _, _, content, style in replaced.values():
            self._content[content] += 1
            self._style[style] += 1
            self._mixed += content != style
        self._write_index()

    def _new_entry(self, key: tuple, dataset, label: int) -> dict:
        in_split = dataset.in_splits[key[0]]
        return {
            "domain": in_split.domain,
            "class_name": self.class_names[label],
            "label": label,
            "key": f"env{in_split.environment}-{key[1]:05d}",
            "versions": [],
        }

    def _add_version(self, key: tuple, number: int, step: int, image: torch.Tensor, label: int, **choice) -> None:
        entry = self._entries[key]
        file = f"round-{number:03d}/{entry['key']}.png"
        png = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(png, "PNG")
        write_atomically(self.folder / file, png.getvalue())
        if self._confidence is not None:
            choice["confidence"] = self._confidence(from_store(image[None]), torch.tensor([label])).item()
        entry["versions"].append({"round": number, "step": step, "file": file, **choice})

    def _write_index(self) -> None:
        total = sum(self._content.values())
        candidates = 1 + max(self._content | self._style, default=0)
        index = {
            "class_names": self.class_names,
            "images": list(self._entries.values()),
            "choices": {
                "content": [self._content[j] for j in range(candidates)],
                "style": [self._style[j] for j in range(candidates)],
                "mixed": self._mixed / total if total else 0.0,
            },
        }
        write_atomically(self.folder / "gallery.json", json.dumps(index, indent=1))
