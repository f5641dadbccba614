"""The supplement's figures: what stands in their rows, and their captions.

Figure 2: contrast reduction against random masking. Figure 3: one plain image of each domain through the rounds, with
its LD noise images. Figure 4: the same for complex backgrounds.
"""

from typing import Callable, Optional

from matplotlib.figure import Figure
from tqdm import tqdm

from ..pixels import to_store
from .figures_drawing import QUANTILE, Row, draw, top_of
from .figures_noise import Noise, NoiseImages
from .figures_run import Followed, Version, most_complex, plainest_by_domain
from .figures_written import Drawn
from .gallery import spread

ROUNDS_SHOWN, IMAGES_SHOWN = 6, 4
CONFIDENCES = (1.0, 0.8, 0.6, 0.4, 0.2)
CORRUPTIONS = {"contrast": "p · x", "mask": "random blocks"}


def supplement_figures(noises: NoiseImages) -> list[tuple[Drawn, Figure]]:
    """Figures 2, 3 and 4 of one run; all that takes the LDM is done when this returns."""
    images = noises.run.images
    plain, complex_ = plainest_by_domain(images, IMAGES_SHOWN), most_complex(images, IMAGES_SHOWN)
    compared = list({image.key: image for image in (
        min(plain, key=lambda image: image.background), complex_[0])}.values())
    steps = len(plain) + len(complex_) + len(CORRUPTIONS) * len(compared)
    with tqdm(total=steps, desc="LD noise images", disable=None, leave=False) as progress:
        return [
            _corruptions(noises, compared, progress.update),
            _evolution(noises, plain, "fig3-evolution.png", "Generated versions and their LD noise images",
                       "the image with the plainest background of each training domain", progress.update),
            _evolution(noises, complex_, "fig4-complex-backgrounds.png", "Complex backgrounds", "of the followed images "
                       "the third with the most complex backgrounds", progress.update)]


def _evolution(noises: NoiseImages, images: list[Followed], file: str, title: str, which: str,
               update: Callable[[], None]) -> tuple[Drawn, Figure]:
    """Figs. 3 and 4: each image's versions from left to right, below each its noise image."""
    steps = {version.round: version.step for image in images for version in image.versions.values()}
    rounds = spread(sorted(steps), ROUNDS_SHOWN)
    groups, numbers = [], []
    for image in images:
        made = noises.of_versions(image, rounds)
        update()
        versions: list[Optional[Version]] = [image.versions.get(number) for number in rounds]
        label = (image.class_name, f"from {image.domain}", f"background {image.background:.3f}")
        groups.append([Row(label, [version and version.image for version in versions]),
                       Row(("LD noise",), [made.get(number) for number in rounds],
                           [_note(made[number]) if number in made else "" for number in rounds])])
        numbers.append(_numbers(noises, image, [{"round": number, "corruption": noises.hparams["ld_corruption"],
                                                 **_values(noise)} for number, noise in made.items()]))
    heads = ["original" if number == 0 else f"round {number}\nstep {steps[number]}" for number in rounds]
    top = top_of(groups)
    caption = (f"Shown: {which}, from training images only; each round starts from the one before. Below each version its "
               f"LD noise image under the run's corruption ({noises.hparams['ld_corruption']}), with p and the LD loss: "
               f"{noises.confidence_source}. {_measured(noises, images, top)} Background: the colour gradient per pixel that "
               "three quarters of the pixels outside the central half of the original exceed.")
    return Drawn(file, title, caption, top, numbers), draw(heads, groups, top)


def _corruptions(noises: NoiseImages, images: list[Followed], update: Callable[[], None]) -> tuple[Drawn, Figure]:
    """Fig. 2: an original at several p under both corruptions, below each its noise image."""
    groups, numbers = [], []
    for image in images:
        told = []
        for corruption, told_as in CORRUPTIONS.items():
            made = noises.of_original(image, list(CONFIDENCES), corruption)
            update()
            label = (corruption, told_as, f"{image.class_name}, from {image.domain}")
            groups.append([Row(label, [to_store(noise.image) for noise in made]),
                           Row(("LD noise",), list(made), [f"LD {noise.value:.3f}" for noise in made])])
            told += [{"round": 0, "corruption": corruption, **_values(noise)} for noise in made]
        numbers.append(_numbers(noises, image, told))
    top = top_of(groups)
    caption = ("An original at stated confidences p, corrupted by contrast reduction (p · x) and by random masking "
               "(1 − p of all blocks grey), each with its LD noise image and LD loss. Shown: the "
               f"followed images with the plainest and the most complex background. {_measured(noises, images, top)}")
    return (Drawn("fig2-corruptions.png", "Contrast reduction against random masking", caption, top, numbers),
            draw([f"p = {p:g}" for p in CONFIDENCES], groups, top))


def _note(noise: Noise) -> str:
    return f"p {noise.confidence:.2f} · LD {noise.value:.3f}"


def _values(noise: Noise) -> dict[str, float]:
    return {"p": noise.confidence, "ld": noise.value}


def _numbers(noises: NoiseImages, image: Followed, noise: list[dict]) -> dict:
    return {"key": image.key, "domain": image.domain, "class_name": image.class_name, "seed": noises.seed(image),
            "background": image.background, "noise": noise}


def _measured(noises: NoiseImages, images: list[Followed], top: float) -> str:
    """How the noise images are made and scaled, the same for all of a figure."""
    size, factor = images[0].original.image.shape[-1], noises.scale_factor
    return (f"An LD noise image is the size of ε_φ − ε, as root mean square over {noises.draws} draws of (t, ε) and the "
            f"latent channels; all versions of an image share their draws. It has {size // factor} × {size // factor} latent "
            f"pixels, each drawn {factor} image pixels wide, and one colour scale from 0 to {top:g} for the whole figure "
            f"(what exceeds it, at most {1 - QUANTILE:.1%} of all latent pixels, is drawn as its top).")
