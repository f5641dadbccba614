"""The embedded benchmark and the embedded LDM: determinism, the cache, the folder; no image was trained on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import host
from domainbed_domainfusion.pocket import CLASS_NAMES, LDM_FOLDER, digit_styles, glyphs, ldm_folder, pretraining
from domainbed_domainfusion.seeding import seed_of

# --- glyphs ---------------------------------------------------------------------------------------------------------


def _disc(radius: float) -> np.ndarray:
    y, x = np.mgrid[0 : glyphs.GRID, 0 : glyphs.GRID] - (glyphs.GRID - 1) / 2
    return (np.hypot(x, y) - radius).astype(np.float32)


def test_fill_and_outline_cover_the_areas_that_geometry_says():
    assert glyphs.fill(_disc(20), grow=2).sum() == pytest.approx(np.pi * 22**2, rel=0.01)
    assert glyphs.outline(_disc(20), half_width=1.5, grow=2).sum() == pytest.approx(2 * np.pi * 22 * 3, rel=0.01)


def test_font_shape_is_the_signed_distance_to_the_glyph():
    shape = glyphs.font_shape(0, 8)
    inside = np.argwhere(shape < 0)
    outside = np.argwhere(shape >= 0)
    for pixel in [(32, 32), (5, 5), (16, 32), (40, 26)]:
        others = outside if shape[pixel] < 0 else inside
        brute = np.hypot(*(others - pixel).T).min()
        assert abs(shape[pixel]) == pytest.approx(brute, abs=1.2)
    rows = np.flatnonzero((shape < 0).any(1))
    assert len(rows) / glyphs.GRID == pytest.approx(2 / 3, abs=0.05)


def test_every_font_draws_ten_different_digits():
    for font in range(len(glyphs.FONTS)):
        covers = np.stack([glyphs.fill(glyphs.font_shape(font, digit)) for digit in range(10)])
        assert (covers.sum((1, 2)) > 100).all()
        assert all(np.abs(covers[a] - covers[b]).sum() > 50 for a in range(10) for b in range(a))


def test_warp_by_nothing_changes_nothing_and_a_shift_moves_the_glyph():
    shape = _disc(10)

    class Middle:
        """A generator that always draws the middle of the interval."""

        @staticmethod
        def uniform(low, high, size=None):
            return np.full(size or (), (low + high) / 2)

    assert np.allclose(glyphs.warp(shape, Middle, 0, 0, (1, 1), 0), shape, atol=1e-4)
    moved = glyphs.warp(shape, np.random.default_rng(0), 0, 0, (1, 1), 6)
    assert glyphs.fill(moved).sum() == pytest.approx(glyphs.fill(shape).sum(), rel=0.25)
    assert not np.allclose(moved, shape, atol=0.5)


# --- DigitStyles ----------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch):
    """DigitStyles with twenty images per environment."""
    monkeypatch.setattr(digit_styles, "PER_CLASS", 2)
    recipe = digit_styles.recipe
    recipe.cache_clear()
    yield
    recipe.cache_clear()


# Mean brightness of images 0 to 9, recorded. They are compared with a tolerance instead of a digest: the rounding of
# FreeType and numpy may differ between releases.
RECORDED = json.loads("""{"H": [74.9, 78.1, 86.5, 67.8, 65.3, 86.1, 77.4, 73.3, 89.3, 83.4],
 "P": [233.7, 220.7, 227.3, 220.9, 220.5, 210.6, 228.3, 231.9, 220.4, 230.3],
 "O": [223.9, 235.5, 232.5, 231.7, 231.0, 229.7, 229.0, 235.9, 232.7, 218.1],
 "A": [85.5, 110.5, 130.8, 64.6, 220.3, 117.3, 89.9, 171.8, 149.9, 216.1]}""")


@pytest.mark.parametrize("environment", digit_styles.ENVIRONMENTS)
def test_images_are_a_function_of_their_identity(environment):
    if environment == "H":
        images = digit_styles.handwritten()[:10]
    else:
        images = np.stack([digit_styles.render(environment, index) for index in range(10)])
        backwards = np.stack([digit_styles.render(environment, index) for index in reversed(range(10))])[::-1]
        assert np.array_equal(images, backwards)
        assert not np.array_equal(images[0], digit_styles.render(environment, 10))
    assert images.shape == (10, 3, 32, 32) and images.dtype == np.uint8
    assert images.mean((1, 2, 3)) == pytest.approx(RECORDED[environment], abs=3.0)


def test_handwritten_are_scans_of_their_labels():
    from sklearn.datasets import load_digits

    scans = load_digits()
    labels = digit_styles.labels()
    small = digit_styles.handwritten()[:, 0].reshape(-1, 8, 4, 8, 4).mean((2, 4))
    for index in (0, 7, 123, 1499):
        same = scans.images[scans.target == labels[index]] * 255 / 16
        assert np.abs(same - small[index]).mean((1, 2)).min() < 16
    assert len(np.unique(digit_styles.handwritten().reshape(1500, -1), axis=0)) == 1500


def test_dataset_as_the_host_uses_it(tmp_path):
    dataset = digit_styles.digit_styles_class(host.datasets.MultipleDomainDataset)(str(tmp_path), [0], {})
    assert type(dataset).ENVIRONMENTS == ["H", "P", "O", "A"] and len(dataset) == 4
    assert (dataset.input_shape, dataset.num_classes, dataset.CLASS_NAMES) == ((3, 32, 32), 10, CLASS_NAMES)
    for environment in dataset:
        x, y = environment.tensors
        assert x.dtype == torch.float32 and x.shape == (1500, 3, 32, 32) and x.min() >= 0 and 0.9 < x.max() <= 1
        assert torch.equal(y.bincount(), torch.full((10,), 150)) and y.dtype == torch.int64
    art, prints = dataset[3].tensors[0], dataset[1].tensors[0]
    assert art.std(1).mean() > 0.1 and prints.std(1).max() == 0


def test_cache_is_read_and_a_stale_or_broken_one_is_drawn_again(tmp_path, few, monkeypatch, capsys):
    first = digit_styles.load_images(str(tmp_path))
    path = tmp_path / "DigitStyles" / "images.npz"
    assert [file.name for file in path.parent.iterdir()] == ["images.npz"]
    whole, draws, make = path.read_bytes(), [], digit_styles.make_images
    monkeypatch.setattr(digit_styles, "make_images", lambda: draws.append(1) or make())

    def again():
        images = digit_styles.load_images(str(tmp_path))
        assert all(np.array_equal(first[name], images[name]) for name in "HPOA")
        return len(draws), capsys.readouterr().out

    assert again() == (0, "")
    path.write_bytes(whole[: len(whole) // 2])
    count, said = again()
    assert (count, said) == (1, f"{path} is damaged: drawing DigitStyles again.\n")
    assert path.stat().st_size == len(whole)
    monkeypatch.setattr(digit_styles, "recipe", lambda: "another")
    assert again() == (
        2,
        f"{path} was drawn by another version of the code or of its libraries: drawing DigitStyles again.\n",
    )
    archive = dict(np.load(path))
    archive["P"] = archive["O"]
    np.savez(path, **archive)
    assert again() == (3, f"{path} does not hold what was written: drawing DigitStyles again.\n")


@pytest.mark.parametrize("call", ["drawn", "read"])
def test_a_run_draws_the_same_numbers_whether_the_images_were_there_or_not(tmp_path, few, call):
    """In a process of its own, because scikit-learn draws when it is imported. A job that is continued finds them."""
    if call == "read":
        digit_styles.load_images(str(tmp_path))
    code = f"""
from domainbed_domainfusion.pocket import digit_styles
from domainbed_domainfusion.resuming import generators
digit_styles.PER_CLASS = {digit_styles.PER_CLASS}
before = generators.state()
digit_styles.load_images({str(tmp_path)!r})
assert generators.state() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_data_folder_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="DigitStyles has no data folder: give --data_dir a folder"):
        digit_styles.load_images(None)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"Cannot write DigitStyles to .*file.DigitStyles .*give --data_dir another"):
        digit_styles.load_images(str(tmp_path / "file"))


# --- What the LDM was trained on ------------------------------------------------------------------------------------


def test_pretraining_identities_are_not_the_benchmarks():
    benchmark = {
        seed_of(digit_styles.NAMESPACE, environment, index)
        for environment in digit_styles.ENVIRONMENTS
        for index in range(1500)
    }
    training = json.loads(Path(LDM_FOLDER, "training.json").read_text())
    seen = {seed_of(pretraining.NAMESPACE, training["seed"], index) for index in range(training["renders"])}
    assert len(seen) == training["renders"] and not seen & benchmark
    assert pretraining.NAMESPACE != digit_styles.NAMESPACE
    state = pretraining.rng_of(training["seed"], 5).bit_generator.state
    assert state == np.random.PCG64(seed_of(pretraining.NAMESPACE, training["seed"], 5)).state


def test_pretraining_cannot_read_the_benchmark():
    """It renders in a process that has no scikit-learn, without ever importing digit_styles."""
    program = (
        "import sys; sys.modules['sklearn'] = None\n"
        "from domainbed_domainfusion.pocket import pretraining\n"
        "print(sum(int(pretraining.render(0, index)[0].sum()) for index in range(20)))\n"
        "assert not [name for name in sys.modules if 'digit_styles' in name]\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == sum(int(pretraining.render(0, index)[0].sum()) for index in range(20))


def test_no_render_is_an_image_of_the_benchmark():
    benchmark = np.concatenate(
        [digit_styles.handwritten()[:100]]
        + [np.stack([digit_styles.render(name, index) for index in range(100)]) for name in digit_styles.LOOKS]
    )
    renders = np.stack([pretraining.render(0, index)[0] for index in range(150)])
    difference = torch.cdist(
        torch.from_numpy(renders.reshape(150, -1) / 255.0),
        torch.from_numpy(benchmark.reshape(len(benchmark), -1) / 255.0),
    )
    assert difference.min() > 1


def test_renders_show_every_digit_in_and_out_of_black_and_white():
    images, digits = zip(*(pretraining.render(3, index) for index in range(200)))
    assert set(digits) == set(range(10))
    grey = np.array([image.std(0).max() == 0 for image in images])
    assert 0.1 < grey.mean() < 0.6


# --- The folder -----------------------------------------------------------------------------------------------------


def test_tokenizer_knows_its_words_and_spells_out_the_others():
    tokenizer = ldm_folder.make_tokenizer()
    assert [tokenizer.tokenize(word) for word in ldm_folder.WORDS] == [[f"{word}</w>"] for word in ldm_folder.WORDS]
    assert tokenizer.tokenize("Sketch of") == [*"sketc", "h</w>", "of</w>"]
    ids = tokenizer(list(pretraining.prompts()), padding="max_length", truncation=True).input_ids
    assert {len(row) for row in ids} == {ldm_folder.TOKENS} and len({tuple(row) for row in ids}) == len(ids)


def test_folder_is_small_and_holds_safetensors_only():
    files = [file for file in Path(LDM_FOLDER).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 12e6
    assert not [file for file in files if file.suffix in (".bin", ".pkl", ".pt", ".ckpt", ".py")]
    index = json.loads(Path(LDM_FOLDER, "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["safety_checker"] == index["feature_extractor"] == [None, None]


def test_text_encoder_weights_are_named_as_stable_diffusions():
    """Without the prefix transformers 4 would load none of them and say so only in a warning."""
    from safetensors import safe_open

    with safe_open(Path(LDM_FOLDER, "text_encoder", "model.safetensors"), "pt") as weights:
        assert all(name.startswith("text_model.") for name in weights.keys())  # noqa: SIM118 - not a dict


def test_scheduler_is_stable_diffusions():
    """Recorded from CompVis/stable-diffusion-v1-4."""
    config = json.loads(Path(LDM_FOLDER, "scheduler", "scheduler_config.json").read_text())
    recorded = {
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "clip_sample": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "prediction_type": "epsilon",
    }
    assert {name: config[name] for name in recorded} == recorded


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(
        LDM_FOLDER,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        torch_dtype=torch.float32,
    )
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_diffusers_own_pipeline_runs_the_folder(pipeline):
    originals = torch.from_numpy(np.stack([digit_styles.render("P", digit) for digit in range(10)])).float() / 255
    made = pipeline(
        [f"a photo of a {name}" for name in CLASS_NAMES],
        image=originals,
        strength=0.8,
        guidance_scale=5,
        num_inference_steps=12,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert made.shape == (10, 3, 32, 32) and made.isfinite().all() and made.min() >= 0 and made.max() <= 1
    assert (made.amax((1, 2, 3)) - made.amin((1, 2, 3))).min() > 0.3


def test_vae_keeps_images_and_its_scaling_factor_is_the_latents_deviation(pipeline):
    images = torch.from_numpy(np.stack([pretraining.render(9, index)[0] for index in range(64)])).float() / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(images).latent_dist.mean
        back = pipeline.vae.decode(latents).sample
    assert (back - images).abs().mean() < 0.15
    assert (latents.std() * pipeline.vae.config.scaling_factor).item() == pytest.approx(1, abs=0.15)


def test_noise_prediction_heeds_the_prompt(pipeline):
    """The right class's prompt predicts the noise better than the other nine do, on average over images."""
    images, digits = zip(*(pretraining.render(11, index) for index in range(40)))
    with torch.no_grad():
        z = pipeline.vae.encode(torch.from_numpy(np.stack(images)).float() / 127.5 - 1).latent_dist.mean
        z = z * pipeline.vae.config.scaling_factor
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
        noisy = pipeline.scheduler.add_noise(z, noise, torch.tensor([500]))
        tokens = pipeline.tokenizer(
            [f"a photo of a {name}" for name in CLASS_NAMES], padding="max_length", return_tensors="pt"
        ).input_ids
        words = pipeline.text_encoder(tokens).last_hidden_state
        predicted = [pipeline.unet(noisy, 500, word.expand(40, -1, -1)).sample for word in words]
    errors = torch.stack([(prediction - noise).square().mean((1, 2, 3)) for prediction in predicted], dim=1)
    right = errors[torch.arange(40), torch.tensor(digits)]
    assert right.mean() < (errors.sum(1) - right).mean() / 9
    assert (errors.argmin(1) == torch.tensor(digits)).float().mean() > 0.4


# --- The training ---------------------------------------------------------------------------------------------------


def test_the_training_script_makes_such_a_folder(tmp_path, monkeypatch):
    from diffusers import StableDiffusionPipeline

    from domainbed_domainfusion.pocket import train_ldm

    for name, value in {"PROCESSES": 1, "VAE_STEPS": 3, "UNET_STEPS": 3, "VAE_BATCH": 2, "UNET_BATCH": 4}.items():
        monkeypatch.setattr(train_ldm, name, value)
    images, digits = zip(*(pretraining.render(0, index) for index in range(8)))
    state = torch.random.get_rng_state()
    threads = torch.get_num_threads()
    try:
        train_ldm._train_in_process(
            0,
            str(tmp_path / "meeting"),
            str(tmp_path / "ldm"),
            0,
            1.0,
            torch.from_numpy(np.stack(images)),
            torch.tensor(digits),
            pretraining.prompts(),
            "",
            0.0,
        )
    finally:
        torch.random.set_rng_state(state)
        torch.set_num_threads(threads)
    made = StableDiffusionPipeline.from_pretrained(
        tmp_path / "ldm", safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    record = json.loads((tmp_path / "ldm" / "training.json").read_text())
    assert record["unet_steps_done"] == 3 and [len(record["losses"][name]) for name in ("vae", "unet")] == [3, 3]
    assert made.vae.config.scaling_factor == record["latent_scaling_factor"] > 0
    names = {str(file.relative_to(LDM_FOLDER)) for file in Path(LDM_FOLDER).rglob("*") if file.is_file()}
    made_names = {str(file.relative_to(tmp_path / "ldm")) for file in (tmp_path / "ldm").rglob("*") if file.is_file()}
    assert made_names == names - {"README.md", "samples.png", "training_curve.png"}
