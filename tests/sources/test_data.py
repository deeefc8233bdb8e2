from pathlib import Path

import numpy as np
import pytest
import torch

import language
from shoal.errors import DataError, SpecError, UsageError
from shoal.measure import predictions, quality
from shoal.sources.data import load_data
from shoal.sources.models import load_model
from shoal.sources.tokens import infer_text_format

_CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10-original-part.npz"


def labels(loader):
    return torch.cat([y for _, y in loader])


def inputs(loader):
    return torch.cat([x for x, _ in loader])


def test_digits_in_three_parts():
    data = load_data("digits")
    sizes = data.describe()
    assert sizes["calibration"] + sizes["validation"] + sizes["test"] == 1797
    assert sizes["test"] >= 400
    assert (sizes["num_classes"], sizes["shape"], data.runs_code) == (10, [1, 8, 8], False)
    shares = torch.bincount(labels(data.validation())) / torch.bincount(labels(data.calibration()))
    assert ((shares - 0.25).abs() < 0.03).all()


def test_digits_are_split_alike_whatever_the_seed():
    one, two = load_data("digits", seed=1), load_data("digits", seed=2)
    assert torch.equal(inputs(one.validation()), inputs(two.validation()))
    assert torch.equal(inputs(one.calibration(augment=False)), inputs(two.calibration(augment=False)))
    assert not torch.equal(inputs(one.calibration()), inputs(two.calibration()))


def test_calibration_is_augmented_and_repeats():
    data = load_data("digits")
    assert torch.equal(inputs(data.calibration()), inputs(data.calibration()))
    assert not torch.equal(inputs(data.calibration()), inputs(data.calibration(augment=False)))
    assert not torch.equal(inputs(data.validation(augment=True)), inputs(data.validation()))


def test_limits():
    data = load_data("digits", limit=50, batch_size=20)
    assert [len(y) for _, y in data.calibration()] == [20, 20, 10]
    assert len(labels(data.calibration(limit=7))) == 7
    assert len(labels(data.test())) == 50
    assert len(labels(data.test()).unique()) == 10


def test_example():
    example = load_data("digits").example(3)
    assert example.tensors[0].shape == (3, 1, 8, 8)
    assert example.target.shape == (3,)


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 4)), rng.integers(0, 3, 40)
    np.savez(tmp_path / "t.npz", x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])
    return f"npz:{tmp_path / 't.npz'}"


def test_a_table_is_not_augmented(table):
    data = load_data(table, seed=4)
    assert torch.equal(inputs(data.calibration()), inputs(data.calibration(augment=False)))
    assert data.num_classes == 3
    assert not torch.equal(inputs(data.validation()), inputs(load_data(table, seed=5).validation()))


def test_mean_and_std_shift_and_scale(table):
    plain, moved = inputs(load_data(table).test()), inputs(load_data(table, mean=[1], std=[2]).test())
    assert torch.allclose((plain - 1) / 2, moved)


def test_without_labels(tmp_path):
    x = np.zeros((10, 4), dtype=np.float32)
    np.savez(tmp_path / "x.npz", x_train=x, x_test=x)
    data = load_data(f"npz:{tmp_path / 'x.npz'}")
    assert data.num_classes is None
    assert next(iter(data.test())).shape == (10, 4)
    assert data.example().target is None


def test_resized(tmp_path):
    x = np.zeros((10, 3, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", x_train=x, x_test=x)
    assert load_data(f"npz:{tmp_path / 'x.npz'}", size=12).describe()["shape"] == [3, 12, 12]


def test_a_users_function(tmp_path):
    file = tmp_path / "mydata.py"
    file.write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "def both():\n    d = TensorDataset(torch.zeros(10, 4), torch.zeros(10).long())\n    return d, d"
    )
    data = load_data(f"{file}:both")
    assert data.runs_code
    assert data.describe() == {
        "spec": f"{file}:both",
        "calibration": 8,
        "validation": 2,
        "test": 10,
        "num_classes": None,
        "shape": [4],
    }
    with pytest.raises(DataError, match="do not apply"):
        load_data(f"{file}:both", size=3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "unknown DATA 'digit'\n.*Did you mean 'digits'"),
        ("cifar:x", "Did you mean 'cifar10'"),
        ("cifar10", "does not say where the data is\n.*cifar10:ROOT"),
        ("npz:", "npz:FILE"),
        ("text:", "text:FILE or text:FOLDER"),
        ("txt:a", "Did you mean 'text'"),
        ("zzz", "Known forms: digits"),
    ],
)
def test_unknown(spec, message):
    with pytest.raises(SpecError, match=message):
        load_data(spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [1, 2]}, "2 values of mean for 1 channel\n.*Give 1\\."),
        ({"std": [0.0]}, "not above 0"),
        ({"std": float("inf")}, "std is .inf., expected finite numbers"),
        ({"mean": [float("-inf")]}, "mean is .-inf., expected finite numbers"),
        ({"batch_size": 0}, "the batch size is 0"),
        ({"limit": -1}, "the limit is -1"),
        ({"size": 0}, "the size is 0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(DataError, match=message):
        load_data("digits", **options)


def test_nan_is_no_standard_deviation():
    with pytest.raises(UsageError, match="std is nan, expected a number"):
        load_data("digits", std=[float("nan")])


def test_a_table_has_no_size(table):
    with pytest.raises(DataError, match="no size to change"):
        load_data(table, size=8)


@pytest.mark.skipif(not _CIFAR.is_file(), reason="the real CIFAR-10 images are not here")
def test_real_images():
    data = load_data(f"npz:{_CIFAR}", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    sizes = data.describe()
    assert (sizes["calibration"] + sizes["validation"], sizes["test"]) == (4660, 600)
    assert abs(sizes["validation"] - 932) <= 5
    assert sizes["shape"] == [3, 32, 32]
    x = inputs(data.test())
    assert x.mean().abs() < 0.2
    assert 0.8 < x.std() < 1.3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A text file, and a network of transformers with its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "corpus.txt").write_text(language.text(3000))
    language.llama().save_pretrained(folder / "net")
    language.save_tokenizer(folder / "net")
    return folder


def test_text(corpus):
    model = load_model(f"hf:{corpus / 'net'}").model
    data = load_data(f"text:{corpus / 'corpus.txt'}", text_format=infer_text_format(model), batch_size=4)
    said = data.describe()
    assert (said["num_classes"], said["shape"], data.runs_code) == (None, [64], False)
    assert min(said["calibration"], said["validation"], said["test"]) >= 4
    batch = data.example(2)
    assert batch.target.shape == batch.kwargs["input_ids"].shape == (2, 64)
    assert torch.equal(batch.target[:, :-1], batch.kwargs["input_ids"][:, 1:])
    with torch.no_grad():
        theirs = model(**batch.kwargs, labels=batch.kwargs["input_ids"]).loss
    assert quality(predictions(model, [batch]), "test").loss == pytest.approx(float(theirs), rel=1e-5)
    shorter = load_data(f"text:{corpus / 'corpus.txt'}", text_format=infer_text_format(model, length=16), limit=3)
    assert [shorter.describe()[part] for part in ("calibration", "validation", "test")] == [3, 3, 3]


def test_text_with_a_tokenizer_of_its_own(corpus):
    reading = infer_text_format(language.llama(), tokenizer=corpus / "net")
    assert load_data(f"text:{corpus / 'corpus.txt'}", text_format=reading).describe()["shape"] == [64]
    with pytest.raises(DataError, match=r"--tokenizer PATH"):
        load_data(f"text:{corpus / 'corpus.txt'}", text_format=infer_text_format(language.llama()))


def test_text_that_does_not_fit(corpus):
    reading = infer_text_format(language.llama(), tokenizer=corpus / "net")
    with pytest.raises(DataError, match="can only be read for a network"):
        load_data(f"text:{corpus / 'corpus.txt'}")
    with pytest.raises(DataError, match="--size do not apply to text"):
        load_data(f"text:{corpus / 'corpus.txt'}", text_format=reading, size=3)
    with pytest.raises(DataError, match="no file or folder"):
        load_data(f"text:{corpus / 'none'}", text_format=reading)
    small = infer_text_format(language.llama(vocab_size=50), tokenizer=corpus / "net")
    with pytest.raises(DataError, match="does not fit the network"):
        load_data(f"text:{corpus / 'corpus.txt'}", text_format=small)
