"""`domainfusion predict`, compared with the host's own dataset, transform and algorithm."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from domainbed_domainfusion import cli
from domainbed_domainfusion.errors import InputError
from domainbed_domainfusion.hosting import context, host
from domainbed_domainfusion.runs import trained_model as trained
from domainbed_domainfusion.runs.trained_model import TrainedModel

from ..conftest import TinyDigits

CLASSES = ["dog", "guitar", "big_horse"]


@pytest.fixture(autouse=True)
def own_context():
    yield
    context._current = context.TrainingContext()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    """A PACS folder: 4 environments, 3 classes, 2 images of odd sizes in each."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for environment in ("art_painting", "cartoon", "photo", "sketch"):
        for name in CLASSES:
            folder = root / "PACS" / environment / name
            folder.mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 256, (40 + 7 * i, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.{'png' if i else 'jpg'}")
    return str(root)


def save_model(folder, algorithm: str, dataset, args: dict, hparams: dict, state: dict):
    """model.pkl as the host's train script writes it."""
    path = folder / "model.pkl"
    torch.save(
        {
            "args": {"algorithm": algorithm, "data_dir": None, "test_envs": [0], **args},
            "model_input_shape": dataset.input_shape,
            "model_num_classes": dataset.num_classes,
            "model_num_domains": 3,
            "model_hparams": hparams,
            "model_dict": state,
        },
        path,
    )
    return path


@pytest.fixture
def pacs(data, tmp_path):
    def make(algorithm="ERM", **hparams):
        hparams = {**host.hparams_registry.default_hparams(algorithm, "PACS"), "backbone": "mnist_cnn", **hparams}
        dataset = host.datasets.PACS(data, [0], hparams)
        torch.manual_seed(1)
        model = host.algorithms.get_algorithm_class(algorithm)(dataset.input_shape, dataset.num_classes, 3, hparams)
        path = save_model(
            tmp_path, algorithm, dataset, {"dataset": "PACS", "data_dir": data}, hparams, model.state_dict()
        )
        return path, dataset, model.eval()

    return make


def predict(*arguments) -> None:
    assert cli.run(["predict", *map(str, arguments)]) == 0


def read(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "algorithm, hparams", [("ERM", {}), ("SAM", {}), ("UDIM", {}), ("ERM", {"weight_average": "swad"})], ids=str
)
def test_it_is_what_the_host_evaluates(pacs, data, tmp_path, capsys, algorithm, hparams):
    path, dataset, model = pacs(algorithm, **hparams)
    predict(path, f"{data}/PACS/art_painting", "--output", tmp_path / "p.csv")
    rows, printed = read(tmp_path / "p.csv"), capsys.readouterr().out.splitlines()
    names = sorted(CLASSES)
    assert list(rows[0]) == ["file", "prediction", *names] and len(rows) == len(printed) == 6
    for row, line, (image, _), (file, _) in zip(rows, printed, dataset[0], dataset[0].samples):
        with torch.no_grad():
            expected = model.predict(image[None]).softmax(-1)[0]
        assert [float(row[name]) for name in names] == pytest.approx(expected.tolist(), abs=1e-5)
        assert row["file"] == file and row["prediction"] == names[int(expected.argmax())]
        assert line.split()[:3] == [file, row["prediction"], f"{expected.max():.4f}"]


def test_class_names_without_the_data(pacs, data, tmp_path, capsys):
    path, _, _ = pacs()
    content = torch.load(path, weights_only=True)
    content["args"]["data_dir"] = str(tmp_path / "moved")
    torch.save(content, path)
    image = f"{data}/PACS/photo/dog/0.jpg"
    predict(path, image, "--output", tmp_path / "p.csv")
    assert list(read(tmp_path / "p.csv")[0]) == ["file", "prediction", "0", "1", "2"]
    assert "class names of PACS are not to be found: classes are shown by label number" in capsys.readouterr().err
    predict(path, image, "--output", tmp_path / "p.csv", "--data_dir", data)
    assert list(read(tmp_path / "p.csv")[0])[2:] == sorted(CLASSES)
    predict(path, image, "--output", tmp_path / "p.csv", "--class_names", "a", "b", "c")
    assert list(read(tmp_path / "p.csv")[0])[2:] == ["a", "b", "c"]
    with pytest.raises(InputError, match="--class_names has 1 names, but .* tells 3 classes"):
        predict(path, image, "--class_names", "a")


def test_tensor_datasets_are_fed_as_the_host_feeds_them(host_run, tmp_path, monkeypatch):
    monkeypatch.setattr(host.datasets, "TinyDigits", TinyDigits, raising=False)
    run = host_run("DomainFusion", ldm="/nowhere", lambda2=0.0, lambda3=0.0)
    run.hparams.update(lambda2=0.5, lambda3=0.5)  # as in training; the diffusion model has been deleted since
    path = save_model(
        tmp_path, "DomainFusion", run.dataset, {"dataset": "TinyDigits"}, run.hparams, run.algorithm.state_dict()
    )
    stored = (run.dataset[0][5][0] * 255).round().to(torch.uint8)
    Image.fromarray(stored.permute(1, 2, 0).numpy()).save(tmp_path / "x.png")
    predict(path, tmp_path / "x.png", "--output", tmp_path / "p.csv")
    with torch.no_grad():
        expected = run.algorithm.eval().predict(stored[None] / 255).softmax(-1)[0].tolist()
    row = read(tmp_path / "p.csv")[0]
    assert [float(row[name]) for name in TinyDigits.CLASS_NAMES] == pytest.approx(expected, abs=1e-5)


def test_grey_digits_are_made_grey(tmp_path):
    shape = (1, 28, 28)
    model = TrainedModel(tmp_path, {"dataset": "Debug28"}, {}, shape, 2, 3, {})
    grey = torch.randint(0, 256, (28, 28), dtype=torch.uint8)
    x = model.evaluation_transform()(Image.fromarray(grey.numpy()))
    assert x.shape == shape and torch.allclose(x[0], grey / 255)


def test_no_diffusion_model_and_no_pretrained_weights_are_loaded(data, tmp_path, pacs):
    """In a new process, outside any DomainBed checkout: diffusers is not imported and nothing is downloaded."""
    hparams = {"backbone": "host", "resnet18": True, "resnet50_augmix": False}
    with pytest.MonkeyPatch.context() as patch:
        resnet18 = __import__("torchvision").models.resnet18
        patch.setattr("torchvision.models.resnet18", lambda **_: resnet18())
        path, dataset, model = pacs("DomainFusion", ldm=str(tmp_path / "gone"), lambda2=0.0, lambda3=0.0, **hparams)
    content = torch.load(path, weights_only=True)
    content["model_hparams"].update(lambda2=0.5, lambda3=0.5)
    torch.save(content, path)
    program = (
        "import sys; from domainbed_domainfusion import cli; import torch.hub; "
        "torch.hub.load_state_dict_from_url = None; code = cli.main(sys.argv[1:]); "
        "assert 'diffusers' not in sys.modules and 'transformers' not in sys.modules; sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "predict",
            str(path),
            f"{data}/PACS/art_painting/dog",
            "--output",
            str(tmp_path / "p.csv"),
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    with torch.no_grad():
        expected = model.predict(dataset[0][2][0][None]).softmax(-1)[0].tolist()
    row = next(row for row in read(tmp_path / "p.csv") if row["file"] == dataset[0].samples[2][0])
    assert [float(row[name]) for name in sorted(CLASSES)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("hparams", [{"resnet18": True, "resnet50_augmix": False}, {"resnet50_augmix": True}])
def test_the_hosts_resnets_are_built_without_published_weights(monkeypatch, hparams):
    def fail(*arguments, **options):
        raise AssertionError("weights were asked for")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    monkeypatch.setattr("timm.models._builder.load_pretrained", fail)
    values = {**host.hparams_registry.default_hparams("ERM", "PACS"), **hparams}
    with trained._without_published_weights():
        assert host.networks.ResNet((3, 224, 224), values).n_outputs == (512 if values["resnet18"] else 2048)
    with pytest.raises(AssertionError, match="weights were asked for"):
        host.networks.ResNet((3, 224, 224), values)


@pytest.mark.parametrize("content", [b"no image", None])
def test_a_broken_image_is_named_and_the_others_are_predicted(pacs, data, tmp_path, capsys, content):
    path, _, _ = pacs()
    good = tmp_path / "images" / "b.jpg"
    good.parent.mkdir()
    good.write_bytes(open(f"{data}/PACS/photo/dog/0.jpg", "rb").read())
    broken = good.with_name("a.jpg")
    broken.write_bytes(good.read_bytes()[:700] if content is None else content)
    with pytest.raises(InputError, match=f"1 of 2 images cannot be read, the first is {broken} .*: copy it again"):
        predict(path, tmp_path / "images", "--output", tmp_path / "p.csv")
    assert [row["file"] for row in read(tmp_path / "p.csv")] == [str(good)]


def test_hparams_that_the_host_drew_with_numpy(pacs, data):
    path, _, _ = pacs(resnet_dropout=np.float64(0.1), some_count=np.int64(2), some_name=np.str_("x"))
    predict(path, f"{data}/PACS/photo/dog/0.jpg")


class Evil:
    def __reduce__(self):
        return os.system, ("echo executed",)


def test_what_is_no_model_is_refused_and_never_run(pacs, data, tmp_path, capfd):
    path, dataset, model = pacs()
    image = f"{data}/PACS/photo/dog/0.jpg"
    whole = path.read_bytes()
    for damaged in (b"", b"text", whole[:1000], whole[:-1000]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="is not a whole model.pkl"):
            predict(path, image)
    save_model(tmp_path, "ERM", dataset, {"dataset": "PACS"}, {"x": Evil()}, {})
    with pytest.raises(InputError, match="it calls (posix|nt).system, and is not trusted"):
        predict(path, image)
    assert "executed" not in capfd.readouterr().out
    save_model(tmp_path, "Unheard", dataset, {"dataset": "PACS"}, {}, {})
    with pytest.raises(InputError, match="trained with the algorithm Unheard, which this host"):
        predict(path, image)
    state = {name: value for name, value in model.state_dict().items() if name != "classifier.bias"}
    save_model(tmp_path, "ERM", dataset, {"dataset": "PACS"}, model.hparams, state)
    with pytest.raises(InputError, match="lacks classifier.bias"):
        predict(path, image)
    with pytest.raises(InputError, match="There is no model"):
        predict(tmp_path / "none.pkl", image)
    with pytest.raises(InputError, match="There is no image"):
        predict(path, tmp_path / "none.png")
