"""model_step*.pkl of a resumed run (the host's --save_model_every_checkpoint): the first part's stay as they are.

While a run is replayed its algorithm has not the weights of those steps, and the host writes such files all the same.
So they are moved aside first, and moved back over what the host writes. They are never opened.
"""

import re
from pathlib import Path


class ModelFiles:
    """Those of the steps before `updates - 1`; moved aside into `aside` at once."""

    def __init__(self, job_folder: Path, aside: Path, updates: int):
        self._job, self._aside = job_folder, aside
        for path in job_folder.glob("model_step*.pkl"):
            match = re.fullmatch(r"model_step(\d+)\.pkl", path.name)
            if match and int(match[1]) < updates - 1:
                aside.mkdir(exist_ok=True)
                if (aside / path.name).exists():  # an earlier replay was killed, and this file is the host's
                    path.unlink()
                else:
                    path.rename(aside / path.name)

    def put_back(self, all_of_them: bool) -> None:
        """Move back those that the host has written again, or all of them."""
        for path in self._aside.glob("*.pkl") if self._aside.is_dir() else ():
            if all_of_them or (self._job / path.name).exists():
                path.replace(self._job / path.name)
