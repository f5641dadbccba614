"""Pixel ranges: classifier, diffusion model, store, and the host's transforms between them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from domainbed_domainfusion import pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def folder(tmp_path):
    """Two classes of two random 40×30 images, behind the host's evaluation transform at 16 pixels."""
    random = np.random.RandomState(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(random.randint(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    return ImageFolder(
        str(tmp_path),
        transforms.Compose([transforms.Resize((16, 16)), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]),
    )


def test_there_and_back_is_the_identity():
    x = torch.rand(2, 3, 16, 16)
    normalised = transforms.Normalize(MEAN, STD)(x)
    pixel_range = pixels.PixelRange((3, 16, 16), MEAN, STD)
    torch.testing.assert_close(pixel_range.to_diffusion(normalised, 16), x * 2 - 1, atol=1e-6, rtol=0)
    torch.testing.assert_close(pixel_range.to_classifier(x * 2 - 1), normalised, atol=1e-5, rtol=0)


def test_normalisation_is_read_from_the_hosts_transform(folder):
    class Data:
        datasets = [folder]

    pixel_range = pixels.PixelRange.of((3, 16, 16), Data)
    assert pixel_range.mean.flatten().tolist() == pytest.approx(MEAN)
    assert pixel_range.std.flatten().tolist() == pytest.approx(STD)
    assert pixels.PixelRange.of((3, 16, 16), None).std.flatten().tolist() == [1, 1, 1]


def test_normalisation_is_found_inside_concatenated_environments(folder):
    class Data:
        datasets = [ConcatDataset([ConcatDataset([Subset(folder, [1])])])]

    assert pixels.PixelRange.of((3, 16, 16), Data).mean.flatten().tolist() == pytest.approx(MEAN)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_channels_go_to_rgb_and_back(channels):
    x = torch.rand(2, channels, 8, 8)
    rgb = pixels.to_rgb(x)
    assert rgb.shape == (2, 3, 8, 8)
    torch.testing.assert_close(pixels.from_rgb(rgb, channels), x)


def test_the_store_rounds_to_the_nearest_level():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(pixels.to_store(pixels.from_store(levels)), levels)
    assert torch.equal(pixels.to_store(torch.tensor([-2.0, 2.0])), torch.tensor([0, 255], dtype=torch.uint8))


def test_raw_images_of_every_kind_of_environment(folder):
    """The host's own object keeps its transform; nested datasets are looked through."""
    expected = Image.open(folder.samples[3][0])
    for environment, index in ((folder, 3), (Subset(folder, [3]), 0), (ConcatDataset([folder, folder]), 7)):
        image, label = pixels.without_transform(environment)[index]
        assert label == 1 and np.array_equal(np.array(image), np.array(expected))
        assert pixels.transform_of(environment) is folder.transform
    assert folder[3][0].shape == (3, 16, 16)
    tensors = TensorDataset(torch.rand(2, 3, 4, 4), torch.zeros(2))
    assert pixels.without_transform(tensors) is tensors and pixels.transform_of(tensors) is None


def test_a_stored_version_trains_as_the_host_would_train_on_it(folder):
    """Through the host's transform, from a PIL image of the stored pixels."""
    image, _ = pixels.without_transform(folder)[0]
    stored = pixels.stored_version(image, 16)
    oracle = image.convert("RGB").resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(stored.permute(1, 2, 0).numpy(), np.array(oracle))
    pixel_range = pixels.PixelRange((3, 16, 16), MEAN, STD)
    torch.testing.assert_close(pixels.training_version(stored, folder, pixel_range), folder.transform(oracle))
    torch.testing.assert_close(
        pixel_range.to_classifier(pixels.from_store(stored)[None])[0], folder.transform(oracle), atol=1e-5, rtol=0
    )


def test_tensors_without_a_transform_come_back_as_they_were():
    raw = torch.randint(0, 256, (3, 16, 16)) / 255
    tensors = TensorDataset(raw[None], torch.zeros(1))
    stored = pixels.stored_version(raw, 16)
    torch.testing.assert_close(
        pixels.training_version(stored, tensors, pixels.PixelRange((3, 16, 16))), raw, atol=1e-6, rtol=0
    )


def test_psnr_of_pairs_of_images():
    """Half of the pixels differ by 1 of a range of 2: 10 log10(4 / 0.5)."""
    one = torch.zeros(2, 2, 3, 4, 4)
    other = one.clone()
    other[1, 0, :, :2] = 1
    found = pixels.psnr(one, other)
    assert found.shape == (2, 2) and found[1, 0].item() == pytest.approx(10 * np.log10(8))
    assert found[0].isinf().all()
