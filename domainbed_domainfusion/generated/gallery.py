"""Pictures of a run: some images with all their generated versions, in the job folder's `generated/`.

`gallery.json` lists the versions of these images. For each it has the round, the step, the chosen candidates, and the
confidence p of the classifier of that step in the true class. It also counts the choices over all images.
"""

import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from ..files import write_atomically
from ..pixels import from_store

if TYPE_CHECKING:
    from .dataset import GenerateDataset

#: p, the classifier's confidence in the true class: (images (B, 3, S, S) in [-1, 1], labels (B,)) → (B,) in [0, 1]
Confidence = Callable[[Tensor, Tensor], Tensor]


class Gallery:
    """Writes the versions of the first `per_domain` images of every training domain: the followed images.

    `confidence` is called for these images only, when their round is recorded. Without it no confidence is written.
    Raises InputError when the disk is full. Files written before stay.
    """

    def __init__(self, job_folder: str, per_domain: int, class_names: list[str], confidence: Confidence | None = None):
        self.folder = Path(job_folder, "generated")
        self.per_domain = per_domain
        self.class_names = class_names
        self._confidence = confidence
        self._entries: dict[int, dict] = {}  # by row of the generate-dataset
        self._content: Counter = Counter()
        self._style: Counter = Counter()
        self._mixed = 0

    def record_originals(self, dataset: "GenerateDataset") -> None:
        """Write version 0 of the followed images: the raw ones. Called before the first round."""
        for row in self._followed_rows(dataset):
            image, label = dataset.version(row)
            self._entries[row] = self._new_entry(dataset, row, label)
            self._add_version(row, 0, 0, image, label)

    def record(self, number: int, step: int, dataset: "GenerateDataset", content: Tensor, style: Tensor) -> None:
        """Write round `number`'s version of the followed images, and count the choices of all images.

        content, style: (N,) for each row the index of the candidate that gave its content and its style.
        """
        for row in self._followed_rows(dataset):
            image, label = dataset.version(row)
            choice = {"content": int(content[row]), "style": int(style[row])}
            self._add_version(row, number, step, image, label, **choice)
        self._content.update(content.tolist())
        self._style.update(style.tolist())
        self._mixed += int((content != style).sum())
        self._write_index()

    def resume_state(self) -> dict[str, Any]:
        """Plain data from which `load_resume_state` continues. The pictures are files already."""
        return {
            "entries": self._entries,
            "content": dict(self._content),
            "style": dict(self._style),
            "mixed": self._mixed,
        }

    def load_resume_state(self, state: dict[str, Any]) -> None:
        self._entries, self._mixed = state["entries"], state["mixed"]
        self._content, self._style = Counter(state["content"]), Counter(state["style"])

    def _followed_rows(self, dataset: "GenerateDataset") -> list[int]:
        """The first rows of every domain."""
        return [row for rows in dataset.rows for row in rows[: self.per_domain]]

    def _new_entry(self, dataset: "GenerateDataset", row: int, label: int) -> dict:
        split, index = dataset.keys[row]
        in_split = dataset.in_splits[split]
        return {
            "domain": in_split.domain,
            "class_name": self.class_names[label],
            "label": label,
            "key": f"env{in_split.environment}-{index:05d}",
            "versions": [],
        }

    def _add_version(self, row: int, number: int, step: int, image: Tensor, label: int, **choice: Any) -> None:
        entry = self._entries[row]
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
