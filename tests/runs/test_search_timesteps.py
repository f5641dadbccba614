"""`domainfusion search-timesteps`: which images it searches on, what it prints, and the sentences of bad input."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from domainbed_domainfusion import cli, pixels
from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.diffusion.reference_distance import ReferenceDistance
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import hparams as table
from domainbed_domainfusion.runs import timestep_report
from domainbed_domainfusion.runs.chosen_images import choose
from domainbed_domainfusion.seeding import seed_of

CLASSES = ["big_dog", "cat"]
SMALL = ("--steps", 3, "--reference_steps", 8, "--images", 7, "--generations", 3, "--population", 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two environments of two classes, three different images in each."""
    generator = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("images")
    for environment in ("photo", "sketch"):
        for name in CLASSES:
            folder = root / environment / name
            folder.mkdir(parents=True)
            for number in range(3):
                picture = generator.integers(0, 256, (36, 40, 3), dtype=np.uint8)
                Image.fromarray(picture).save(folder / f"{number}.png")
    return root


def command(data, output, *arguments, small=SMALL, **hparams) -> dict:
    """The command's JSON file. Later arguments win."""
    given = ["--data", data, "--output", output, *small, "--hparams", json.dumps({"image_size": 32, **hparams})]
    assert cli.run(["search-timesteps", *map(str, [*given, *arguments])]) == 0
    return json.loads(output.read_text())


@pytest.fixture(scope="module")
def found(data, tiny_ldm, tmp_path_factory) -> dict:
    return command(data, tmp_path_factory.mktemp("found") / "t.json", "--ldm", tiny_ldm, "--seed", 5)


def error_of(ldm, data, source: str, **schedule) -> float:
    """A plain loop for one image: the mean squared error of its candidate to that of eight steps."""
    sampler = {"scheduler": "dpmsolver++", "timestep_spacing": "trailing"}
    prompts = Prompts(ldm, ["big dog", "cat"])
    with Image.open(data / source) as image:
        x = pixels.from_store(pixels.stored_version(image, 32)[None])
    y, seeds = torch.tensor([CLASSES.index(source.split("/")[1])]), [[seed_of(5, "search-timesteps", source)]]
    few, many = (
        CandidateSampler(ldm, prompts, **each, **sampler).sample(x, y, seeds).latents
        for each in (schedule, {"steps": 8})
    )
    return (few - many).square().mean().item()


def test_both_schedules_are_judged_on_images_that_were_not_searched_on(found, data, tiny_ldm):
    search, held_out = found["images"]["search"], found["images"]["held_out"]
    assert (len(search), len(held_out)) == (4, 3) and not set(search) & set(held_out)
    ldm = LatentDiffusion.load(tiny_ldm, device="cpu")
    for name, schedule in (
        ("uniform", {"steps": 3}),
        ("found", {"timesteps": found["hparams"]["denoising_timesteps"]}),
    ):
        for half, images in (("search_error", search), ("held_out_error", held_out)):
            errors = [error_of(ldm, data, source, **schedule) for source in images]
            assert found[name][half] == pytest.approx(np.mean(errors), rel=1e-3)
        assert found[name]["held_out_errors"] == pytest.approx(errors, rel=1e-3)


def test_the_search_sees_its_own_half_alone(data, tiny_ldm, tmp_path, monkeypatch):
    asked, original = [], ReferenceDistance.distances

    def spied(self, timesteps):
        asked.append((len(self.images), tuple(timesteps)))
        return original(self, timesteps)

    monkeypatch.setattr(ReferenceDistance, "distances", spied)
    index = command(data, tmp_path / "t.json", "--ldm", tiny_ldm)
    judged = [tuple(index[name]["timesteps"]) for name in ("uniform", "even", "found")]
    assert [list(timesteps) for images, timesteps in asked if images == 4] == [t for t, _ in index["scores"]]
    assert [timesteps for images, timesteps in asked if images == 3] == judged


def test_images_are_spread_over_environments_and_classes(found, data):
    groups = [source.rsplit("/", 1)[0] for half in found["images"].values() for source in half]
    assert sorted(map(groups.count, set(groups))) == [1, 2, 2, 2]
    folders = [ImageFolder(str(data / environment)) for environment in ("photo", "sketch")]
    for seed in range(5):
        four = choose(data, folders, 4, torch.Generator().manual_seed(seed))
        assert len({source.rsplit("/", 1)[0] for source, _ in four}) == 4
    everything = choose(data, [ImageFolder(str(data / "photo"))], 99, torch.Generator())
    assert sorted(everything) == [(f"photo/{name}/{i}.png", y) for y, name in enumerate(CLASSES) for i in range(3)]


def test_the_file_and_the_hparams(found):
    """12 lists; the uniform ones come first, the best is the found one, and the hparams can be given to a run."""
    assert found["uniform"]["timesteps"] == [666, 332] and found["reference_timesteps"][0] == 749
    scores = [(tuple(timesteps), score) for timesteps, score in found["scores"]]
    assert (
        len(scores) == 12 and scores[0][0] == (666, 332) and scores[1][0] == (749, 374) and scores[2][0] == (501, 251)
    )
    best, lowest = min(scores, key=lambda each: each[1])
    assert tuple(found["found"]["timesteps"]) == best and found["found"]["search_error"] == lowest
    assert found["history"][-1] == lowest <= found["uniform"]["search_error"] and len(found["history"]) == 3
    assert found["hparams"] == {"denoising_timesteps": [999, *best], "scheduler": "dpmsolver++"}
    table.check_values(found["hparams"])
    assert found["arguments"]["seed"] == 5 and found["candidates"]["strength"] == 0.8
    assert found["candidates"]["denoising_steps"] == 3 and len(found["ldm"]["sha256"]) == 64


def test_the_seed_decides(found, data, tiny_ldm, tmp_path):
    again = command(data, tmp_path / "again.json", "--ldm", tiny_ldm, "--seed", 5)
    assert again == found
    other = command(data, tmp_path / "other.json", "--ldm", tiny_ldm, "--seed", 6)
    assert other["images"] != found["images"] and other["scores"] != found["scores"]


@pytest.mark.parametrize("better", [True, False])
def test_what_is_printed(found, better):
    index = json.loads(json.dumps(found))
    index["found"].update(timesteps=[700, 90], held_out_errors=[1.0, 2.0, 9.0], held_out_error=4.0, held_out_psnr=20.5)
    index["even"].update(held_out_error=4.2, held_out_psnr=20.1)
    index["uniform"].update(held_out_errors=[3.0, 3.0, 3.0], held_out_error=4.1 if better else 4.0, held_out_psnr=20.0)
    lines = timestep_report.in_words(index).splitlines()
    assert lines[0] == "3 timesteps, of which strength runs the last 2; 12 lists scored on 4 images."
    assert lines[1].startswith("On 3 held-out images, against candidates of 8 steps")
    assert lines[2].split() == f"uniform 666 332: {4.1 if better else 4}, 20.00 dB".split()
    assert lines[3].split() == ["even", "749", "374:", "4.2,", "20.10", "dB"]
    assert lines[4].split() == ["found", "700", "90:", "4,", "20.50", "dB"]
    assert lines[5] == "The list found is nearer than the uniform schedule on 2 of 3."
    if better:
        assert json.loads("{" + lines[6] + "}") == found["hparams"]
    else:
        assert lines[6:] == ["On average it is no nearer: leave denoising_timesteps out."]


@pytest.mark.parametrize(
    "arguments, hparams, sentence",
    [
        (["--steps", 0], {}, "--steps is 0, but must be 1 or more"),
        (["--steps", 8], {}, "--reference_steps is 8, but must be more than --steps .8."),
        (["--steps", 1], {}, "1 denoising steps at strength 0.8 leave no step to run"),
        (["--reference_steps", 1001], {}, "--reference_steps is 1001, but the diffusion model has 1000 timesteps"),
        (["--images", 1], {}, "--images is 1, but must be 2 or more"),
        (["--generations", 0], {}, "--generations is 0, but must be 1 or more"),
        (["--population", 3], {}, "--population is 3, but must be 4 or more"),
        (["--data", "nowhere"], {}, "There is no dataset folder nowhere"),
        (["--ldm", "no/where/to/be/found"], {}, "latent diffusion model no/where/to/be/found does not exist"),
        (["--output", "/"], {}, "--output / is a folder: give the name of a JSON file"),
        ([], {"scheduler": "ddim"}, "for the scheduler dpmsolver.*, not for ddim: .* leave the hparam scheduler out"),
        ([], {"scheduler": "lcm"}, "not for lcm: .* lcm draws noise in each step"),
        (
            [],
            {"denoising_timesteps": [9, 1]},
            "denoising_timesteps has no place in a search of timesteps .it is what",
        ),
        ([], {"denoising_steps": 4}, "denoising_steps has no place in a search of timesteps .give --steps"),
        ([], {"strength": 2.0}, "The hparam strength is 2.0"),
        ([], {"strenght": 0.5}, "did you mean 'strength'"),
        ([], {"image_size": 33}, "An image size of 33 does not fit"),
        ([], {"class_names": ["dog"]}, "class_names has 1 names, but there are 2 class folders"),
    ],
)
def test_bad_input_is_one_sentence_before_any_work(data, tiny_ldm, tmp_path, monkeypatch, arguments, hparams, sentence):
    monkeypatch.setattr(LatentDiffusion, "predict", lambda *_: pytest.fail("the model was asked"))
    with pytest.raises(InputError, match=sentence) as raised:
        command(data, tmp_path / "t.json", "--ldm", tiny_ldm, *arguments, **hparams)
    assert not re.search(r"\.\s", str(raised.value).rstrip(".")) and not list(tmp_path.iterdir())


def test_an_image_that_cannot_be_read(data, tiny_ldm, tmp_path):
    copy = tmp_path / "copy"
    for source in sorted(data.rglob("*.png")):
        target = copy / source.relative_to(data)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    (copy / "photo" / "cat" / "0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="1 of 12 images in .* cannot be read, the first is .*0.png"):
        command(copy, tmp_path / "t.json", "--ldm", tiny_ldm)
