"""domainfusion ld-curve: the coefficients it draws, and the ranges of p in which LD raises the confidence."""

import json

import pytest
import torch
from PIL import Image

from domainbed_domainfusion import cli, pixels
from domainbed_domainfusion.diffusion.distillation import LatentDistillation
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.report.coefficient_curve import CONFIDENCES, Curve
from domainbed_domainfusion.seeding import seed_of

CLASSES = ["big_dog", "cat", "cow"]


@pytest.fixture
def data(tmp_path):
    """Two domains of three classes with four images each; every image is another one."""
    generator = torch.Generator().manual_seed(0)
    for domain in ("photo", "sketch"):
        for name in CLASSES:
            for number in range(4):
                path = tmp_path / "data" / domain / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                picture = torch.randint(256, (32, 32, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(picture.numpy()).save(path)
    return tmp_path / "data"


def curves(data, tmp_path, ldm, *arguments, **hparams) -> dict:
    given = json.dumps({"image_size": 32, **hparams})
    output = str(tmp_path / "curve.png")
    cli.run(["ld-curve", "--data", str(data), "--ldm", ldm, "--hparams", given, "--output", output, *arguments])
    with Image.open(output) as picture:
        assert picture.width > 1000
    return json.loads((tmp_path / "curve.json").read_text())


@pytest.mark.parametrize("hparams", [{}, {"ld_preset": "score"}, {"ld_gradient": "guidance", "ld_draws": 2}])
def test_means_and_quantiles_are_those_of_latent_distillation(data, tmp_path, tiny_ldm, capsys, hparams):
    """All images of a domain, one at a time, under the prompts of their own classes."""
    found = curves(data, tmp_path, tiny_ldm, "--images", "12", "--seed", "3", **hparams)
    ldm = LatentDiffusion.load(tiny_ldm, device="cpu")
    names = ("gradient", "guidance_scale", "reduction", "weighting", "draws")
    reading = {name: found["hparams"][f"ld_{name}"] for name in names}
    prompts = Prompts(ldm, ["big dog", "cat", "cow"])
    ours = LatentDistillation(ldm, prompts, timesteps=tuple(found["hparams"]["ld_timesteps"]), **reading)
    (curve,) = [c for c in found["curves"] if (c["group"], c["prompt"]) == ("sketch", "matched")]
    assert curve["images"] == 12
    for column in (0, 5):
        slopes = []
        for index in range(12):
            path = data / "sketch" / CLASSES[index // 4] / f"{index % 4}.png"
            with Image.open(path) as image:
                x = pixels.from_store(pixels.stored_version(image, 32)[None])
            seeds = [seed_of(3, "ld-curve", "sketch", index)]
            p = torch.tensor([CONFIDENCES[column]])
            slopes.append(ours.coefficients(x, torch.tensor([index // 4]), p, seeds)[1])
        a = torch.cat(slopes)
        assert curve["mean"][column] == pytest.approx(a.mean().item(), rel=1e-3, abs=1e-6)
        assert curve["low"][column] == pytest.approx(a.quantile(0.1).item(), rel=1e-2, abs=1e-5)
        assert curve["negative"][column] == pytest.approx((a < 0).float().mean().item())
    printed = capsys.readouterr().out
    assert "photo: LD " in printed and "sketch: LD " in printed


def test_every_class_and_domain_has_both_prompts_and_fewer_images_are_spread_over_the_classes(data, tmp_path, tiny_ldm):
    found = curves(data, tmp_path, tiny_ldm, "--images", "6")
    images = {(curve["group"], curve["prompt"]): curve["images"] for curve in found["curves"]}
    groups = {"photo": 6, "sketch": 6, "big dog": 4, "cat": 4, "cow": 4}
    assert images == {(group, prompt): n for group, n in groups.items() for prompt in ("matched", "mismatched")}
    means = {(c["group"], c["prompt"]): c["mean"] for c in found["curves"]}
    assert means["photo", "matched"] != means["photo", "mismatched"]


@pytest.mark.parametrize(
    "mean, expected",
    [
        ([1.0] * 11, []),
        ([-1.0] * 11, [(0.0, 1.0)]),
        ([-1.0, 1.0] + [1.0] * 9, [(0.0, 0.06)]),
        ([1.0, -1.0] + [-1.0] * 9, [(0.06, 1.0)]),
        ([-1.0] * 5 + [3.0] * 4 + [-1.0] * 2, [(0.0, 0.425), (0.875, 1.0)]),
    ],
)
def test_where_the_confidence_is_raised(mean, expected):
    curve = Curve("A", "matched", 2, mean, mean, mean, mean)
    assert curve.raised == [pytest.approx(each) for each in expected]


def test_bad_input_is_one_sentence(data, tmp_path, tiny_ldm):
    with pytest.raises(InputError, match="There is no dataset folder"):
        curves(tmp_path / "none", tmp_path, tiny_ldm)
    with pytest.raises(InputError, match="--images is 1, but must be 2 or more"):
        curves(data, tmp_path, tiny_ldm, "--images", "1")
    with pytest.raises(InputError, match="class_names has 1 names, but there are 3 class folders"):
        curves(data, tmp_path, tiny_ldm, class_names=["dog"])
    with pytest.raises(InputError, match="The hparam ld_timesteps is "):
        curves(data, tmp_path, tiny_ldm, ld_timesteps=[0.9, 0.1])
