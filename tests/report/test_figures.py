"""The supplement's figures show what Latent Distillation computes from the pictures of the run."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed_domainfusion import cli
from domainbed_domainfusion.diffusion.distillation import LatentDistillation
from domainbed_domainfusion.diffusion.model import LatentDiffusion
from domainbed_domainfusion.diffusion.prompts import Prompts
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import context, host
from domainbed_domainfusion.report import write
from domainbed_domainfusion.report.figures import drawing as figures_drawing
from domainbed_domainfusion.report.figures import write_figures
from domainbed_domainfusion.report.figures.run import background_complexity, most_complex, plainest_by_domain, read_run
from domainbed_domainfusion.report.figures.written import read_figures

from .made_up import write_job, write_sweep
from .test_page import Outline

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven"]
CONFIDENCES = (1.0, 0.8, 0.6, 0.4, 0.2)
EVOLUTION, COMPLEX, CORRUPTIONS = "fig3-evolution.png", "fig4-complex-backgrounds.png", "fig2-corruptions.png"


@pytest.fixture
def job(tmp_path, tiny_ldm) -> Path:
    """A DomainFusion job whose gallery holds 8 images of four domains in 3 rounds; without a model.pkl."""
    folder = write_job(tmp_path / "sweep", "DigitStyles", "DomainFusion", [0])
    change_hparams(folder, ldm=tiny_ldm, image_size=32, gallery=2, ld_preset="mean")
    rng = np.random.default_rng(0)
    for number, spread in ((5, 200), (2, 90)):  # the other originals have even backgrounds
        textured = rng.integers(255 - spread, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(textured).save(folder / f"generated/round-000/env1-{number:05d}.png")
    return folder


@pytest.fixture(autouse=True)
def few_dots(monkeypatch):
    monkeypatch.setattr(figures_drawing, "DPI", 30)
    yield
    context._current = context.TrainingContext()


def change_hparams(folder: Path, **hparams) -> None:
    rows = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    for row in rows:
        row["hparams"].update(hparams)
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def change_gallery(folder: Path, change) -> None:
    path = folder / "generated" / "gallery.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def collecting(figures: list):
    """A `save` that appends the figure to `figures` and writes one pixel: a PNG at 300 dpi takes seconds."""

    def save(figure, path: str) -> None:
        figures.append(figure)
        Image.new("RGB", (1, 1)).save(path, "PNG")

    return save


@pytest.fixture
def drawn(monkeypatch):
    """Draws a job's figures; returns the arrays of each PNG's cells in order, and the index that was written."""

    def draw(folder: Path, draws: int = 1) -> tuple[dict, dict]:
        saved = []
        monkeypatch.setattr(figures_drawing, "save", collecting(saved))
        paths = write_figures(folder, draws=draws)
        index = json.loads((folder / "generated/figures/figures.json").read_text())["figures"]
        assert [path.name for path in paths[:3]] == [figure["file"] for figure in index]
        arrays = {
            one["file"]: [np.asarray(image.get_array()) for image in figure.axes[0].images]
            for one, figure in zip(index, saved)
        }
        return arrays, {one["file"]: one for one in index}

    return draw


def picture(folder: Path, key: str, number: int) -> torch.Tensor:
    """(1, 3, S, S) in [-1, 1], read by other code than the plugin's."""
    pixels = np.asarray(Image.open(folder / f"generated/round-{number:03d}/{key}.png"), dtype=np.float64)
    return torch.from_numpy(pixels / 255 * 2 - 1).permute(2, 0, 1)[None].float()


def split_rows(arrays: list, columns: int) -> list[list]:
    return [arrays[start : start + columns] for start in range(0, len(arrays), columns)]


def test_one_draw_is_the_size_of_the_noise_residual_for_the_recorded_seed(job, tiny_ldm, drawn):
    arrays, index = drawn(job)
    ldm = LatentDiffusion.load(tiny_ldm, device="cpu")
    distillation = LatentDistillation(ldm, Prompts(ldm, NAMES))
    for file in (EVOLUTION, COMPLEX):
        noise_rows = split_rows(arrays[file], 4)[1::2]
        assert len(noise_rows) == len(index[file]["images"]) >= 2
        for image, row in zip(index[file]["images"], noise_rows):
            for noise, array in zip(image["noise"], row):
                x, label = picture(job, image["key"], noise["round"]), torch.tensor([NAMES.index(image["class_name"])])
                given = (x, label, torch.tensor([noise["p"]]), [image["seed"]])
                expected = distillation.noise_residual(*given)[0].square().mean(0).sqrt()
                assert np.allclose(array, expected, atol=1e-5)
                assert noise["ld"] == pytest.approx(distillation.coefficients(*given)[0].item(), rel=1e-4)


def test_several_draws_by_hand(job, tiny_ldm, drawn):
    """Algorithm 2 written out, draw by draw: t and ε from the recorded seed alone."""
    arrays, index = drawn(job, draws=3)
    ldm = LatentDiffusion.load(tiny_ldm, device="cpu")
    image, array = index[EVOLUTION]["images"][0], split_rows(arrays[EVOLUTION], 4)[1][0]
    generator, squares = torch.Generator().manual_seed(image["seed"]), []
    with torch.no_grad():
        z = ldm.encode(picture(job, image["key"], 0))
        for _ in range(3):
            t = torch.randint(1000, (), generator=generator)
            noise = torch.randn(z.shape[1:], generator=generator)
            alpha = ldm.alphas_cumprod[t]
            embedding = ldm.embed([f"a photo of a {image['class_name']}"])
            predicted = ldm.predict_noise(alpha.sqrt() * z + (1 - alpha).sqrt() * noise, t[None], embedding)
            squares.append((predicted - noise)[0] ** 2)
    squares = torch.stack(squares)
    assert np.allclose(array, squares.mean((0, 1)).sqrt(), atol=1e-5)
    assert image["noise"][0]["ld"] == pytest.approx(squares.mean().item(), rel=1e-4)


def test_the_contrast_columns_are_p_times_x(job, drawn):
    arrays, index = drawn(job)
    rows = split_rows(arrays[CORRUPTIONS], 5)
    images = index[CORRUPTIONS]["images"]
    assert len(rows) == 4 * len(images) == 8
    for image, contrast, masked in zip(images, rows[::4], rows[2::4]):
        x = picture(job, image["key"], 0)[0].permute(1, 2, 0).double().numpy()
        for p, array in zip(CONFIDENCES, contrast):
            assert np.abs(array - (p * x + 1) * 127.5).max() <= 0.501
        assert [noise["p"] for noise in image["noise"]] == pytest.approx(2 * CONFIDENCES)
        # Masking replaces whole blocks. Less confidence never replaces fewer of them.
        visible = [(array == masked[0]).all(-1) for array in masked]
        assert all((after <= before).all() for before, after in itertools.pairwise(visible)) and not visible[-1].all()


def test_the_pictures_are_the_gallerys_files(job, drawn):
    arrays, index = drawn(job)
    rows = split_rows(arrays[EVOLUTION], 4)
    for image, row in zip(index[EVOLUTION]["images"], rows[::2]):
        for number, array in enumerate(row):
            file = job / f"generated/round-{number:03d}/{image['key']}.png"
            assert np.array_equal(array, np.asarray(Image.open(file)))


def test_noise_images_of_a_figure_share_one_scale(job, monkeypatch):
    figures = []
    monkeypatch.setattr(figures_drawing, "save", collecting(figures))
    write_figures(job, draws=1)
    for figure, one in zip(figures, json.loads((job / "generated/figures/figures.json").read_text())["figures"]):
        noise = [image for image in figure.axes[0].images if image.get_array().ndim == 2]
        assert {image.get_clim() for image in noise} == {(0, one["top"])}
        values = np.concatenate([np.asarray(image.get_array()).ravel() for image in noise])
        assert (values > one["top"]).sum() <= 0.01 * len(values) + 1 and values.max() > 0.9 * one["top"]
        assert figure.get_size_inches()[0] <= 7.01 and figure.get_size_inches()[1] <= 9.21


def saved_model(folder: Path, **hparams) -> torch.nn.Module:
    """Write the model.pkl that the host's train would write for an untrained classifier; return the classifier."""
    hparams = {
        **host.hparams_registry.default_hparams("DomainFusion", "DigitStyles"),
        "backbone": "mnist_cnn",
        "class_names": NAMES,
        **hparams,
    }
    torch.manual_seed(3)
    algorithm = host.algorithms.get_algorithm_class("DomainFusion")((3, 32, 32), 8, 3, hparams)
    torch.save(
        {
            "args": {"algorithm": "DomainFusion", "dataset": "DigitStyles"},
            "model_input_shape": (3, 32, 32),
            "model_num_classes": 8,
            "model_num_domains": 3,
            "model_hparams": hparams,
            "model_dict": algorithm.state_dict(),
        },
        folder / "model.pkl",
    )
    return algorithm.eval()


def test_p_is_the_finished_classifiers(job, tiny_ldm, drawn):
    classifier = saved_model(job, ldm=tiny_ldm)
    _, index = drawn(job)
    assert "p is the finished classifier's confidence" in index[EVOLUTION]["caption"]
    confidences = set()
    for image in index[EVOLUTION]["images"]:
        for noise in image["noise"]:
            with torch.no_grad():
                logits = classifier.predict((picture(job, image["key"], noise["round"]) + 1) / 2)
            assert noise["p"] == pytest.approx(logits.softmax(-1)[0, NAMES.index(image["class_name"])].item(), abs=1e-5)
            confidences.add(round(noise["p"], 4))
    assert len(confidences) > 4


def test_without_a_model_p_is_what_the_gallery_recorded_or_1(job, drawn):
    _, index = drawn(job)
    assert "p is set to 1, as the run has neither a model.pkl nor recorded confidences" in index[EVOLUTION]["caption"]
    assert {noise["p"] for image in index[EVOLUTION]["images"] for noise in image["noise"]} == {1.0}

    def record(content):
        for image in content["images"]:
            for version in image["versions"]:
                version["confidence"] = 0.2 + 0.1 * version["round"]

    change_gallery(job, record)
    _, index = drawn(job)
    assert "as each round began (there is no model.pkl)" in index[EVOLUTION]["caption"]
    for noise in index[EVOLUTION]["images"][0]["noise"]:
        assert noise["p"] == pytest.approx(0.2 + 0.1 * noise["round"])


def test_an_unreadable_version_leaves_its_cell_empty(job, drawn):
    (key, *_) = [image.key for image in plainest_by_domain(read_run(job).images, 4)]
    (job / f"generated/round-002/{key}.png").write_bytes(b"no image")
    _, index = drawn(job)
    assert [noise["round"] for noise in index[EVOLUTION]["images"][0]["noise"]] == [0, 1, 3]


def test_backgrounds_are_ranked_by_what_surrounds_the_middle():
    flat = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    object_ = flat.clone()
    object_[:, :, 12:20] = torch.randint(256, (3, 32, 8), generator=generator, dtype=torch.uint8)  # top to bottom
    inside = flat.clone()
    inside[:, 9:23, 9:23] = torch.randint(256, (3, 14, 14), generator=generator, dtype=torch.uint8)
    textured = torch.randint(100, 140, (3, 32, 32), generator=generator, dtype=torch.uint8)
    assert background_complexity(flat) == background_complexity(inside) == background_complexity(object_) == 0
    assert background_complexity(textured) > 0.01


def test_plain_and_complex_images_are_chosen_by_it(job):
    images = read_run(job).images
    assert [image.key for image in most_complex(images, 4)] == ["env1-00005", "env1-00002"]
    plain = plainest_by_domain(images, 4)
    assert [image.domain for image in plain] == ["P", "A", "C", "S"] and plain[1].key == "env1-00001"


def test_the_files_are_whole_and_repeatable(job, monkeypatch):
    monkeypatch.setattr(figures_drawing, "DPI", 300)
    paths = write_figures(job, draws=1)
    assert [path.name for path in paths] == [EVOLUTION, COMPLEX, CORRUPTIONS, "figures.json", "figures.html"]
    before = [path.read_bytes() for path in paths]
    assert write_figures(job, draws=1) == paths and [path.read_bytes() for path in paths] == before
    with Image.open(paths[0]) as image:
        assert image.width <= 2101 and image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_the_page_needs_nothing_from_elsewhere(job, tmp_path):
    page = write_figures(job, tmp_path / "elsewhere", draws=1)[-1].read_text()
    outline = Outline(page)
    assert not {tag for tag, _ in outline.tags} & {"script", "link", "iframe", "object", "embed"}
    assert all(source.startswith("data:image/png;base64,") for source in outline.attributes("src"))
    assert not re.search(r"https?://|url\(|@import", page) and outline.attributes("href") == []
    assert len(outline.attributes("src")) == 3 and all(outline.attributes("alt"))
    assert f"domainfusion figures --run {job} --draws 1" in outline.text


def test_the_report_shows_figures_that_are_drawn_and_names_the_command_before(job, tmp_path):
    def page() -> Outline:
        return Outline(write(job.parent, tmp_path / "report.html")[0].read_text())

    before = page()
    assert f"domainfusion figures --run {job}" in before.text
    write_figures(job, draws=1)
    after = page()
    shown = read_figures(job / "generated/figures")
    assert {one.uri for one in shown.shown} <= set(after.attributes("src")) and len(shown.shown) == 3
    assert "Complex backgrounds (supplement, Fig. 4)" in after.text
    (job / "generated/figures" / COMPLEX).write_bytes(b"no image")
    assert "Complex backgrounds (supplement, Fig. 4)" not in page().text
    (job / "generated/figures/figures.json").write_text("{")
    assert f"domainfusion figures --run {job}" in page().text


def test_the_command_line_prints_what_it_wrote(job, capsys):
    assert cli.main(["figures", "--run", str(job), "--draws", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(job / "generated/figures/figures.html")


def refused(folder: Path, **options) -> str:
    """The sentence; nothing is written."""
    before = sorted(folder.rglob("*")) if folder.is_dir() else []
    with pytest.raises(InputError) as error:
        write_figures(folder, **options)
    assert (sorted(folder.rglob("*")) if folder.is_dir() else []) == before
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_that_is_no_job_is_refused(tmp_path, job):
    assert refused(tmp_path / "no") == f"No job folder at {tmp_path}/no: give --run the folder of one DomainFusion run."
    assert refused(job.parent) == (
        f"{job.parent} holds runs and is none itself: give --run one of them, for example {job}."
    )
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty") == (
        f"{tmp_path}/empty is not a job folder (no whole results.jsonl, no "
        "out.txt): give --run the folder of one DomainFusion run."
    )


def test_a_run_of_another_algorithm_is_refused(tmp_path):
    folder = write_sweep(tmp_path, "DigitStyles", algorithms=("ERM",))[0]
    assert refused(folder) == (
        f"{folder} is a run of ERM, which generates no images: give --run a run of DomainFusion."
    )


def test_a_run_without_a_row_or_a_gallery_is_refused(job):
    gallery = (job / "generated/gallery.json").read_text()
    (job / "generated/gallery.json").write_text(gallery[:-9])
    assert re.fullmatch(
        r".*gallery.json is damaged \(JSONDecodeError: .*\): take it from a backup, or give --run "
        r"another run\.",
        refused(job),
    )
    (job / "generated/gallery.json").unlink()
    assert refused(job) == (
        f"{job} has no generated/gallery.json (it has not finished a round of generation, or its "
        "pictures were deleted): run it with --hparams '{\"gallery\": 4}' and draw from its first "
        "round on."
    )
    change_hparams(job, gallery=0)
    assert "(its hparam gallery is 0)" in refused(job)
    (job / "results.jsonl").unlink()
    (job / "out.txt").write_text(
        "Args:\n\talgorithm: DomainFusion\n\tdataset: DigitStyles\n\ttest_envs: [0]\n"
        "\ttrial_seed: 0\n\thparams_seed: 0\nHParams:\n"
    )
    assert refused(job) == (
        f"{job} has no result row yet, and its hparams stand there: wait for its first evaluation, "
        "or give --run another run."
    )


def test_pictures_that_are_all_gone_are_said(job):
    for file in (job / "generated/round-000").iterdir():
        file.unlink()
    assert refused(job) == (
        f"No picture that {job}/generated/gallery.json names can be read: copy the whole folder "
        f"{job}/generated, or give --run another run."
    )


def test_a_missing_ldm_is_refused_and_can_be_given(job, tiny_ldm):
    change_hparams(job, ldm="/moved/away")
    assert refused(job) == (
        "The latent diffusion model /moved/away does not exist: give an existing folder of a Stable Diffusion "
        "1.x or 2.x in diffusers' layout, a .safetensors checkpoint, or a hub id such as "
        "CompVis/stable-diffusion-v1-4; --ldm names another place of the run's model."
    )
    saved_model(job, ldm=tiny_ldm)
    model = torch.load(job / "model.pkl")
    model["model_hparams"]["ldm"] = "/moved/away"
    torch.save(model, job / "model.pkl")
    assert len(write_figures(job, draws=1, ldm=tiny_ldm)) == 5


def test_a_damaged_model_is_refused(job):
    (job / "model.pkl").write_bytes(b"half")
    assert refused(job).startswith(f"{job}/model.pkl is not a whole model.pkl of the host's train script")


def test_draws_must_be_at_least_one(job):
    assert refused(job, draws=0) == "--draws is 0, but must be a whole number from 1 on."
