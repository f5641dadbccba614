"""`domainfusion generate`, from a run and from a folder: against the store, a plain loop and the host's loader."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed_domainfusion import cli, pixels
from domainbed_domainfusion.diffusion import style
from domainbed_domainfusion.diffusion.candidates import CandidateSampler
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.generated.generation import Generation
from domainbed_domainfusion.hosting import context, host
from domainbed_domainfusion.runs import generate
from domainbed_domainfusion.runs.generated_folder import folder_names, png_names
from domainbed_domainfusion.seeding import seed_of

from .test_predict import save_model

FAST = {"denoising_steps": 3, "image_size": 32, "generation_batch": 4}
CLASSES = ["big_dog", "cat"]


@pytest.fixture(autouse=True)
def own_context():
    yield
    context._current = context.TrainingContext()


@pytest.fixture
def data(tmp_path) -> Path:
    """Two environments, two classes, three images of odd sizes in each. Two of the three differ only in suffix."""
    rng = np.random.default_rng(0)
    for environment in ("photo", "sketch"):
        for name in CLASSES:
            folder = tmp_path / "data" / environment / name
            folder.mkdir(parents=True)
            for file in ("a.png", "b.jpg", "b.png"):
                Image.fromarray(rng.integers(0, 256, (36, 40, 3), dtype=np.uint8)).save(folder / file)
    return tmp_path / "data"


def command(*arguments, **hparams) -> None:
    extra = ["--hparams", json.dumps(hparams)] if hparams else []
    assert cli.run(["generate", *map(str, arguments), *extra]) == 0


def provenance(folder) -> list[dict]:
    with open(folder / "provenance.csv", newline="") as file:
        return list(csv.DictReader(file))


def stored(path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def as_the_host_reads_it(folder, environments: int):
    """The host's image-folder dataset over a folder of generated images, with our check of image folders."""

    class Generated(host.datasets.MultipleEnvironmentImageFolder):
        ENVIRONMENTS = [str(i) for i in range(environments)]

    return Generated(str(folder), [], False, {})


def files(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_runs_images(host_run, tiny_ldm, as_script, tmp_path, capsys):
    as_script("train", "--output_dir", str(tmp_path / "job"), "--steps", "10", "--seed", "7")
    run = host_run("DomainFusion", ldm=tiny_ldm, generation_interval=1, lambda2=0.0, gallery=0, **FAST)
    run.update(5)  # rounds at steps 0 and 4
    store = run.algorithm.generate_dataset
    command("--run", tmp_path / "job", "--output", tmp_path / "images")
    rows = provenance(tmp_path / "images")
    assert len(rows) == 35 and capsys.readouterr().out == ""
    for row in rows:
        domain, index = row["source"].split("/")
        split, index = {"Y": 0, "Z": 1}[domain], int(index)
        image, label = store.version(store.keys.index((split, index)))
        name = run.dataset.CLASS_NAMES[label]
        assert row["file"] == f"{domain}/{name}/{index:05d}.png"
        assert torch.equal(stored(tmp_path / "images" / row["file"]), image)
        assert (row["environment"], row["class"], row["prompt"]) == (domain, name, f"a photo of a {name}")
        assert row["seeds"] == ";".join(str(seed_of(7, "candidate", split + 1, index, 2, j)) for j in range(3))
        assert (row["round"], row["model"], row["strength"], row["guidance_scale"]) == ("2", tiny_ldm, "0.8", "7.5")
        assert row["denoising_steps"] == "3" and {row["content"], row["style"]} <= {"0", "1", "2"}
    command("--run", tmp_path / "job", "--output", tmp_path / "first", "--rounds", 1)
    assert {row["round"] for row in provenance(tmp_path / "first")} == {"1"}
    with pytest.raises(InputError, match="has saved round 1, 2, not 3"):
        command("--run", tmp_path / "job", "--output", tmp_path / "third", "--rounds", 3)
    with pytest.raises(InputError, match=r"was generated otherwise \(round: 1 there, 2 here\): give --output another"):
        command("--run", tmp_path / "job", "--output", tmp_path / "first")
    dataset = as_the_host_reads_it(tmp_path / "images", 2)
    assert [len(environment) for environment in dataset] == [17, 18]
    for environment in dataset:
        for path, label in environment.samples:
            assert environment.classes[label] == Path(path).parent.name


def test_a_folder_without_training_is_a_plain_loop(data, tiny_ldm, tmp_path, capsys):
    """Two rounds, written out for each image: content is chosen by similarity alone, style by divergence."""
    command("--data", data, "--output", tmp_path / "out", "--ldm", tiny_ldm, "--rounds", 2, "--seed", 5, **FAST)
    assert "No classifier: content is chosen by its likeness to the original alone" in capsys.readouterr().out
    ldm = LatentDiffusion.load(tiny_ldm, device="cpu")
    sampler = CandidateSampler(ldm, Prompts(ldm, ["big dog", "cat"]), steps=3, timestep_spacing="trailing")
    rows = provenance(tmp_path / "out")
    assert [row["file"] for row in rows][:3] == [f"photo/big_dog/{n}" for n in ("a.png", "b.jpg.png", "b.png.png")]
    assert len(rows) == 12
    for row in rows[::5]:
        with Image.open(data / row["source"]) as image:
            version = pixels.stored_version(image, 32)
        label = CLASSES.index(row["class"])
        for number in (1, 2):
            x = pixels.from_store(version[None])
            seeds = [seed_of(5, "generate", row["source"], number, j) for j in range(3)]
            candidates = sampler.sample(x, torch.tensor([label]), [seeds]).images[0]
            mu0, sigma0, content0 = style.decompose(x[0])
            parts = [style.decompose(candidate) for candidate in candidates]
            likeness = [torch.cosine_similarity(content0.flatten(), part[2].flatten(), dim=0) for part in parts]
            divergence = [style.style_divergence(mu0, sigma0, mu[None], sigma[None]) for mu, sigma, _ in parts]
            c, s = int(torch.stack(likeness).argmax()), int(torch.stack(divergence).argmax())
            made = style.adain(parts[s][0], parts[s][1], parts[c][2]).clamp(-1, 1)
            version = pixels.to_store(made[None])[0]
        assert (row["content"], row["style"]) == (str(c), str(s))
        assert row["prompt"] == f"a photo of a {['big dog', 'cat'][label]}"
        assert row["seeds"] == ";".join(map(str, seeds))
        difference = (stored(tmp_path / "out" / row["file"]).int() - version.int()).abs()
        assert difference.max() <= 1  # float noise: here each image is a batch of its own
    dataset = as_the_host_reads_it(tmp_path / "out", 2)
    assert dataset.num_classes == 2 and [len(environment) for environment in dataset] == [6, 6]


def test_what_is_written_is_kept_and_the_rest_comes_out_the_same(data, tiny_ldm, tmp_path, monkeypatch):
    arguments = ("--data", data, "--ldm", tiny_ldm, "--output")
    command(*arguments, tmp_path / "whole", **FAST)
    made, original = [], Generation.__call__

    def stops(self, x, y, seeds):
        made.append(len(x))
        if len(made) == 3:
            raise KeyboardInterrupt
        return original(self, x, y, seeds)

    monkeypatch.setattr(Generation, "__call__", stops)
    with pytest.raises(KeyboardInterrupt):
        command(*arguments, tmp_path / "stopped", **FAST)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped").rglob("*.png")}
    assert len(times) == 8
    next(iter(times)).write_bytes(b"damaged")  # as after a crash of the machine
    monkeypatch.setattr(Generation, "__call__", lambda self, x, *rest: made.append(len(x)) or original(self, x, *rest))
    command(*arguments, tmp_path / "stopped", **FAST)
    assert made == [4, 4, 4, 4, 4]  # the batch with the damaged image, and the one that was missing
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")
    assert sum(path.stat().st_mtime_ns != then for path, then in times.items()) == 1
    with pytest.raises(InputError, match=r"was generated otherwise \(strength: 0.8 there, 0.5 here\): give --output"):
        command(*arguments, tmp_path / "stopped", **FAST, strength=0.5)


def test_a_classifier_judges_content_as_in_training(data, tiny_ldm, tmp_path, monkeypatch):
    """An ERM model as θ. Its labels are matched by class name: its order is cat, big dog."""

    class Named(host.datasets.MultipleDomainDataset):
        ENVIRONMENTS, CLASS_NAMES = ["X"], ["cat", "big_dog"]
        INPUT_SHAPE = input_shape = (3, 32, 32)
        num_classes = 2

        def __init__(self, *arguments):
            super().__init__()
            self.datasets = [torch.utils.data.TensorDataset(torch.zeros(1, 3, 32, 32), torch.zeros(1))]

    monkeypatch.setattr(host.datasets, "Named", Named, raising=False)
    hparams = {**host.hparams_registry.default_hparams("ERM", "PACS"), "backbone": "mnist_cnn"}
    erm = host.algorithms.ERM((3, 32, 32), 2, 3, hparams)
    with torch.no_grad():
        erm.classifier.weight *= 40  # very confident, so that confidence decides the choice
    path = save_model(tmp_path, "ERM", Named, {"dataset": "Named"}, hparams, erm.state_dict())
    command("--data", data, "--output", tmp_path / "out", "--ldm", tiny_ldm, "--classifier", path, **FAST)
    ours, labels = generate._generation({"ldm": tiny_ldm, **FAST}, CLASSES, path, torch.device("cpu"))
    assert labels == [1, 0] and ours.prompts == ["a photo of a cat", "a photo of a big dog"]
    erm.eval()
    chosen = set()
    for row in provenance(tmp_path / "out"):
        with Image.open(data / row["source"]) as image:
            x = pixels.from_store(pixels.stored_version(image, 32)[None])
        y = torch.tensor([["cat", "big_dog"].index(row["class"])])
        seeds = [seed_of(0, "generate", row["source"], 1, j) for j in range(3)]
        candidates = ours.sampler.sample(x, y, [seeds]).images[0] / 2 + 0.5
        with torch.no_grad():
            likeness = torch.cosine_similarity(erm.featurizer(x / 2 + 0.5), erm.featurizer(candidates))
            score = 0.4 * likeness + 0.6 * erm.predict(candidates).softmax(-1)[:, y.item()]
        assert row["content"] == str(int(score.argmax()))
        chosen.add(row["content"])
    assert len(chosen) > 1
    with pytest.raises(InputError, match="was trained on 2 classes .cat, big_dog., but the folder has 2"):
        (data / "photo" / "cat").rename(data / "photo" / "cow")
        (data / "sketch" / "cat").rename(data / "sketch" / "cow")
        command("--data", data, "--output", tmp_path / "cow", "--ldm", tiny_ldm, "--classifier", path, **FAST)


def test_a_class_that_an_environment_lacks_is_said(host_run, tiny_ldm, as_script, tmp_path, capsys):
    as_script("train", "--output_dir", str(tmp_path / "job"))
    host_run(
        "DomainFusion", ldm=tiny_ldm, generation_interval=1, lambda2=0.0, gallery=0, generation_budget=4, **FAST
    ).update(1)
    command("--run", tmp_path / "job", "--output", tmp_path / "images")
    assert "has no image of" in capsys.readouterr().out


def test_names():
    assert folder_names(["big dog", "a/b", "a_b", "..", "A_B", ""]) == ["big dog", "a_b", "a_b-2", "_", "A_B-3", "_-2"]
    assert png_names(["x/a.jpg", "x/A.png", "y/a.jpg", "z.v2.jpg"]) == [
        "x/a.jpg.png",
        "x/A.png.png",
        "y/a.png",
        "z.v2.png",
    ]


def test_bad_input_stops_before_anything_is_generated(data, tiny_ldm, tmp_path):
    out = tmp_path / "out"
    for arguments, hparams, sentence in (
        (("--data", tmp_path / "none"), {}, "There is no dataset folder"),
        (("--data", data / "photo"), {}, "class folder"),
        (("--data", data), {"strenght": 1}, "did you mean 'strength'"),
        (("--data", data), {"strength": 2.0}, "The hparam strength is 2.0"),
        (("--data", data), {"content_weight": 0.4}, "content_weight 0.4 needs a classifier's judgement"),
        (("--data", data), {"class_names": ["one"]}, "class_names has 1 names, but there are 2 class folders"),
        (("--data", data), {"ldm": str(tmp_path / "gone")}, "does not exist"),
        (("--data", data, "--rounds", 0), {}, "--rounds is 0"),
        (("--data", data, "--classifier", tmp_path / "no.pkl"), {}, "There is no model"),
        (("--run", tmp_path), {}, "--hparams goes with --data"),
        (("--run", data), None, "holds no saved generated images"),
    ):
        with pytest.raises(InputError, match=sentence):
            command(*arguments, "--output", out, **({} if hparams is None else {"ldm": tiny_ldm, **FAST, **hparams}))
        assert not out.exists(), sentence
    with pytest.raises(InputError, match="is there and holds no generated images"):
        command("--data", data, "--output", data, ldm=tiny_ldm, **FAST)
    (data / "photo" / "cat" / "b.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="1 of 12 images in .* cannot be read, the first is .*b.jpg"):
        command("--data", data, "--output", out, ldm=tiny_ldm, **FAST)
    assert not out.exists()


def test_without_the_sampling_strategy_there_is_one_candidate(data, tiny_ldm, tmp_path):
    command("--data", data, "--output", tmp_path / "out", "--ldm", tiny_ldm, **FAST, sampling_strategy=False)
    rows = provenance(tmp_path / "out")
    assert {(row["content"], row["style"], row["seeds"].count(";")) for row in rows} == {("0", "0", 0)}
