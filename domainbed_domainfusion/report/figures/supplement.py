"""The supplement's figures: the content of their rows, and their captions.

Figure 2: contrast reduction against random masking. Figure 3: one plain image of each domain through the rounds, with
its LD noise images. Figure 4: the same for complex backgrounds.
"""

from collections.abc import Callable

from matplotlib.figure import Figure
from tqdm import tqdm

from ...pixels import to_store
from ..pictures import spread
from .drawing import QUANTILE, PictureRow, draw, top_of
from .noise import Noise, NoiseImages
from .run import FollowedImage, Version, most_complex, plainest_by_domain
from .written import DrawnFigure

ROUNDS_SHOWN, IMAGES_SHOWN = 6, 4
CONFIDENCES = (1.0, 0.8, 0.6, 0.4, 0.2)
CORRUPTIONS = {"contrast": "p · x", "mask": "random blocks"}


def supplement_figures(noises: NoiseImages) -> list[tuple[DrawnFigure, Figure]]:
    """Figures 3, 4 and 2 of one run. The LDM is no longer needed when this returns."""
    images = noises.run.images
    plain, complex_ = plainest_by_domain(images, IMAGES_SHOWN), most_complex(images, IMAGES_SHOWN)
    compared = list(
        {image.key: image for image in (min(plain, key=lambda image: image.background), complex_[0])}.values()
    )
    steps = len(plain) + len(complex_) + len(CORRUPTIONS) * len(compared)
    with tqdm(total=steps, desc="LD noise images", disable=None, leave=False) as progress:
        return [
            _evolution(
                noises,
                plain,
                "fig3-evolution.png",
                "Generated versions over the rounds (supplement, Fig. 3)",
                "the image with the plainest background of each training domain",
                progress.update,
            ),
            _evolution(
                noises,
                complex_,
                "fig4-complex-backgrounds.png",
                "Complex backgrounds (supplement, Fig. 4)",
                "the third of the followed images with the most complex backgrounds",
                progress.update,
            ),
            _corruptions(noises, compared, progress.update),
        ]


def _evolution(
    noises: NoiseImages, images: list[FollowedImage], file: str, title: str, which: str, update: Callable[[], None]
) -> tuple[DrawnFigure, Figure]:
    """Figs. 3 and 4: a row with each image's versions, and below it a row with their noise images."""
    steps = {version.round: version.step for image in images for version in image.versions.values()}
    rounds = spread(sorted(steps), ROUNDS_SHOWN)
    groups, numbers = [], []
    for image in images:
        made = noises.of_versions(image, rounds)
        update()
        versions: list[Version | None] = [image.versions.get(number) for number in rounds]
        label = (image.class_name, f"from {image.domain}", f"background {image.background:.3f}")
        groups.append(
            [
                PictureRow(label, [version.image if version else None for version in versions]),
                PictureRow(
                    ("LD noise",),
                    [made.get(number) for number in rounds],
                    [_cell_note(made[number]) if number in made else "" for number in rounds],
                ),
            ]
        )
        numbers.append(
            _numbers(
                noises,
                image,
                [
                    {"round": number, "corruption": noises.hparams["ld_corruption"], **_values(noise)}
                    for number, noise in made.items()
                ],
            )
        )
    heads = ["original" if number == 0 else f"round {number}\nstep {steps[number]}" for number in rounds]
    top = top_of(groups)
    caption = (
        f"Shown: {which}; each round starts from the one before. Below each version is its LD noise image under "
        f"the run's corruption ({noises.hparams['ld_corruption']}), with p and the LD loss; "
        f"{noises.confidence_source}. {_scaled(top)}"
    )
    return DrawnFigure(file, title, caption, top, numbers), draw(heads, groups, top)


def _corruptions(
    noises: NoiseImages, images: list[FollowedImage], update: Callable[[], None]
) -> tuple[DrawnFigure, Figure]:
    """Fig. 2: a row with an original at several p, for each corruption, and below it a row with the noise images."""
    groups, numbers = [], []
    for image in images:
        noise_entries = []
        for corruption, explanation in CORRUPTIONS.items():
            made = noises.of_original(image, list(CONFIDENCES), corruption)
            update()
            label = (corruption, explanation, f"{image.class_name}, from {image.domain}")
            groups.append(
                [
                    PictureRow(label, [to_store(noise.image) for noise in made]),
                    PictureRow(("LD noise",), list(made), [f"LD {noise.value:.3f}" for noise in made]),
                ]
            )
            noise_entries += [{"round": 0, "corruption": corruption, **_values(noise)} for noise in made]
        numbers.append(_numbers(noises, image, noise_entries))
    top = top_of(groups)
    caption = (
        "Originals corrupted at stated confidences p, by contrast reduction (p · x) and by random masking (1 − "
        "p of all blocks grey), with the LD noise image and the LD loss of each. Shown: the followed images "
        f"with the plainest and the most complex background. {_scaled(top)}"
    )
    title = "Contrast reduction against random masking (supplement, Fig. 2)"
    return (
        DrawnFigure("fig2-corruptions.png", title, caption, top, numbers),
        draw([f"p = {p:g}" for p in CONFIDENCES], groups, top),
    )


def _cell_note(noise: Noise) -> str:
    return f"p {noise.confidence:.2f} · LD {noise.value:.3f}"


def _values(noise: Noise) -> dict[str, float]:
    return {"p": noise.confidence, "ld": noise.value}


def _numbers(noises: NoiseImages, image: FollowedImage, noise: list[dict]) -> dict:
    return {
        "key": image.key,
        "domain": image.domain,
        "class_name": image.class_name,
        "seed": noises.seed(image),
        "background": image.background,
        "noise": noise,
    }


def _scaled(top: float) -> str:
    above = f"{100 * (1 - QUANTILE):.0f}\u202f%"
    return f"One colour scale, 0 to {top:g}; the top {above} of all latent pixels are drawn alike."


def note(noises: NoiseImages) -> str:
    """How all noise images are made, for below the figures."""
    size, factor = noises.run.images[0].original.image.shape[-1], noises.scale_factor
    return (
        "All originals are training images of the run. An LD noise image is the root mean square of ε_φ − ε over "
        f"{noises.draws} draws of (t, ε) and the latent channels; all pictures of one original share their draws. "
        f"It has {size // factor} × {size // factor} latent pixels, each drawn as wide as {factor} image pixels. "
        "Background: the colour gradient per pixel that three quarters of the pixels outside the central half of "
        "the original exceed."
    )
