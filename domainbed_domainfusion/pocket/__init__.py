"""The embedded data and diffusion model: digits in four styles, small trained weights, the script that made them."""

from pathlib import Path

LDM_FOLDER = str(Path(__file__).parent / "ldm")
"""The shipped Stable Diffusion 1.x folder, made by `python -m domainbed_domainfusion.pocket.train_ldm`."""

CLASS_NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
