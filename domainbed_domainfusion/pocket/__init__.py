"""The embedded data and diffusion model: digits in four styles, small trained weights, the scripts that made them.

`digit_styles` is the dataset, `ldm/` the model's folder, `train_ldm` the training script. May import: the ground floor
(and, in the training script, diffusers).
"""

from pathlib import Path

LDM_FOLDER = str(Path(__file__).parent / "ldm")
"""The shipped Stable Diffusion 1.x folder, made by `python -m domainbed_domainfusion.pocket.train_ldm`."""

CLASS_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
