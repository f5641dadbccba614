"""The training set from an image folder: every environment but one, with captions of its own classes."""

import numpy as np
import pytest
from PIL import Image

from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.pocket import folder_images, pretraining, train_ldm

SHADES = {"oil": 10, "pen": 90, "photo": 170}


@pytest.fixture
def folder(tmp_path):
    """An environment is a shade, a class adds 20 to it."""
    for environment, shade in SHADES.items():
        for label, name in enumerate(("hot_dog", "zebra")):
            (tmp_path / environment / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (50, 40), (shade + 20 * label,) * 3).save(tmp_path / environment / name / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("left_out", SHADES)
def test_every_image_but_those_of_the_environment_that_is_left_out(folder, left_out):
    for path in (folder / left_out).rglob("*.png"):
        path.write_bytes(b"reading this image would fail")
    (images, labels), names = folder_images.read_folder(folder, left_out)
    assert images.shape == (8, 3, 32, 32) and images.dtype == np.uint8 and names == ["hot dog", "zebra"]
    expected = [(shade + 20 * label, label) for name, shade in SHADES.items() if name != left_out for label in (0, 1)]
    found = {(int(image[0, 0, 0]), int(label)) for image, label in zip(images, labels)}
    assert found == set(expected) and all(len(np.unique(image)) == 1 for image in images)


def test_a_caption_names_the_class_of_its_number():
    captions = pretraining.captions(folder_images.TEMPLATES, ["hot dog", "zebra"])
    assert len(captions) == 5 * 2 + 1 and captions[-1] == ""
    for template in range(5):
        assert "hot dog" in captions[2 * template] and "zebra" in captions[2 * template + 1]
    assert len(folder_images.TEMPLATES) == len(pretraining.TEMPLATES)  # train_unet counts classes by them


def test_bad_folders_are_one_sentence(folder, monkeypatch):
    with pytest.raises(InputError, match="has the environments oil, pen, photo: name in --leave_out the one of them"):
        folder_images.read_folder(folder, "sketch")
    (folder / "pen" / "zebra").rename(folder / "pen" / "horse")
    with pytest.raises(InputError, match="differ in their classes"):
        folder_images.read_folder(folder, "oil")
    monkeypatch.setattr("sys.argv", ["train_ldm", "--output", "x", "--images", str(folder)])
    with pytest.raises(InputError, match="--images and --leave_out go together"):
        train_ldm.main()
