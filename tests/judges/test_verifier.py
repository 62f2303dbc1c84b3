"""The verifier learns, is trained once, is told apart by what it depends on, and reads alike whatever the batch."""

import json
import math

import pytest
import torch
from safetensors import safe_open

from benchmark.api import Modality
from benchmark.fitting import network_store
from benchmark.judges import verifier
from benchmark.runtime import Draws
from tests.fitting.stored_network_faults import check_kept, weight_files

LABELS = {"digit": 3, "quadrant": 4}


class Easy:
    """Two pictures per row: a square in one quadrant, whose colour is the digit; the rest is faint noise."""

    device = "cpu"

    def __init__(self, identity="easy", side=16, rows=600):
        self.identity, self.side, self.size = identity, side, rows
        views = (Modality(name, (3, side, side), kind="image") for name in ("left", "right"))
        self.modalities = (*views, *(Modality(name, (), kind="label", classes=n) for name, n in LABELS.items()))

    def count(self, split):
        return self.size

    def rows(self, split, indices):
        draws = Draws("easy", split, rows=self.size)
        rows = {label: draws.integers(label, classes) for label, classes in LABELS.items()}
        half, where = self.side // 2, torch.arange(self.size)
        for name in ("left", "right"):
            cells = 0.1 * draws.uniform(name, 3, self.side, self.side).reshape(-1, 3, 2, half, 2, half)
            cells[where, rows["digit"], rows["quadrant"] // 2, :, rows["quadrant"] % 2] += 0.8
            rows[name] = cells.reshape(-1, 3, self.side, self.side)
        return {name: x[indices] for name, x in rows.items()}


@pytest.fixture(autouse=True)
def folder(empty_cache):
    return empty_cache / "verifiers"


@pytest.fixture
def short(monkeypatch):
    """Two updates: where it does not matter what is learnt."""
    monkeypatch.setattr(verifier, "UPDATES", 2)
    monkeypatch.setattr(verifier, "PICTURES", 32)


def forget():
    verifier._known.clear()


def weights(network):
    return torch.cat([x.flatten().double() for x in network.state_dict().values()])


# ------------------------------------------------------------------------------------------ training


def test_it_learns_what_pictures_show_and_says_how_well(folder):
    data, lines = Easy(), []
    before = torch.random.get_rng_state()
    network = verifier.of(data, say=lines.append)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert min(network.facts["accuracy"].values()) > 0.99
    assert network.facts["pictures"] == 600  # half of the test rows, both views
    rows = data.rows("test", torch.arange(300))
    found = network.read(rows["right"])
    assert {label: x.dtype for label, x in found.labels.items()} == dict.fromkeys(LABELS, torch.int64)
    assert (found.labels["quadrant"] == rows["quadrant"]).double().mean() > 0.99
    assert found.features.shape == (300, verifier.FEATURES)
    assert "24 updates" in lines[0] and "on 600 real test pictures" in lines[-1]
    (name,) = weight_files(folder)
    with safe_open(folder / name, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
    assert facts == network.facts
    assert {"identity", "code", "accuracy", "pictures", "torch", "updates", "rows", "seconds"} <= facts.keys()


def test_it_is_frozen_and_in_eval_mode(short):
    for _ in range(2):  # trained, and from the file
        network = verifier.of(Easy(), say=str)
        assert not any(module.training for module in network.modules())
        assert not any(weight.requires_grad for weight in network.parameters())
        pictures = Easy().rows("test", torch.arange(9))["left"]
        assert torch.equal(network.read(pictures).features, network.read(pictures.clone()).features)
        forget()


def test_dropout_would_be_off(short, monkeypatch):
    plain = verifier.resnet
    monkeypatch.setattr(verifier, "resnet", lambda shape: torch.nn.Sequential(plain(shape), torch.nn.Dropout(0.5)))
    pictures = torch.rand(20, 3, 16, 16)
    network = verifier.of(Easy(), say=str)
    assert torch.equal(network.read(pictures).features, network.read(pictures.clone()).features)


def test_training_is_a_function_of_the_identity_alone(short):
    first = weights(verifier.of(Easy(), say=str))
    torch.manual_seed(99)
    for file in network_store.folder("verifiers").glob("*"):
        file.unlink()
    forget()
    assert torch.equal(weights(verifier.of(Easy(), say=str)), first)
    assert not torch.equal(weights(verifier.of(Easy("other"), say=str)), first)


def test_few_rows_are_passed_over_a_few_times(monkeypatch):
    monkeypatch.setattr(verifier, "PICTURES", 32)
    network = verifier.of(Easy(rows=20), say=str)
    assert network.facts["updates"] == math.ceil(verifier.PASSES * 20 / 16)


@pytest.mark.parametrize("side", [16, 28, 32, 64])
def test_its_size_does_not_depend_on_the_canvas(side):
    network = verifier.Verifier(verifier.resnet((3, side, side)), {"digit": 10, "quadrant": 4}).eval()
    assert 0.3e6 < sum(weight.numel() for weight in network.parameters()) < 0.45e6
    assert network.read(torch.rand(2, 3, side, side)).features.shape == (2, 64)


# ------------------------------------------------------------------------------------------ the cache


def test_it_is_kept_for_what_it_depends_on(short, folder, monkeypatch):
    worlds = (Easy(), Easy("other"), Easy(rows=50), Easy(side=32))
    check_kept(lambda data, say: verifier.of(data, say=say), worlds, verifier, folder, monkeypatch)


def test_it_speaks_on_stderr(short, capsys):
    verifier.of(Easy())
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("verifier of easy: training, once for this machine, 2 updates\n")


def test_pictures_of_several_shapes_are_refused():
    data = Easy()
    data.modalities = (*data.modalities, Modality("wide", (3, 16, 32), kind="image"))
    with pytest.raises(ValueError, match="one shape"):
        verifier.of(data)


class TwoShapes(Easy):
    """Grey pictures of 28 pixels and coloured ones of 16, of a digit that no modality says."""

    labels = {"digit": 3}  # noqa: RUF012

    def __init__(self):
        super().__init__(identity="two shapes", rows=600)
        self.modalities = tuple(
            Modality(name, shape, kind="image") for name, shape in (("grey", (1, 28, 28)), ("colour", (3, 16, 16)))
        )

    def rows(self, split, indices):
        draws = Draws("two shapes", split, rows=self.size)
        digit = draws.integers("digit", 3)
        grey, colour = (0.1 * draws.uniform(each.name, *each.shape) for each in self.modalities)
        for row, each in enumerate(digit.tolist()):
            grey[row, 0, 8 * each : 8 * each + 8] += 0.8
            colour[row, each] += 0.8
        return {"grey": grey[indices], "colour": colour[indices], "digit": digit[indices]}


def test_pictures_of_each_shape_have_a_verifier_of_their_own(folder, monkeypatch):
    monkeypatch.setattr(verifier, "PASSES", 15)
    data = TwoShapes()
    rows = data.rows("test", torch.arange(300))
    readers = {name: verifier.reading(data, name, "cpu") for name in ("grey", "colour")}
    assert readers["grey"] is not readers["colour"] and len(weight_files(folder)) == 2
    assert verifier.reading(data, "grey", "cpu") is readers["grey"]
    for name, network in readers.items():
        assert network.facts["labels"] == {"digit": 3} and network.facts["pictures"] == 300
        assert (network.read(rows[name]).labels["digit"] == rows["digit"]).double().mean() > 0.99
        assert network.facts["accuracy"]["digit"] > 0.99


# ------------------------------------------------------------------------------------------ reading


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made = verifier.Verifier(verifier.resnet((3, 32, 32)), {"digit": 10, "quadrant": 4})
    with torch.no_grad():
        made(torch.rand(300, 3, 32, 32))  # statistics of the layers
    return made.eval().requires_grad_(False)


def test_a_picture_is_read_alike_whatever_stands_beside_it(network):
    pictures = torch.rand(300, 3, 32, 32)
    whole = network.read(pictures)
    for size in (37, 100, 256, 299):
        parts = [network.read(part.clone()) for part in pictures.split(size)]
        assert torch.equal(torch.cat([part.features for part in parts]), whole.features)
        for label in whole.labels:
            assert torch.equal(torch.cat([part.labels[label] for part in parts]), whole.labels[label])


def test_one_tensor_is_read_once_unless_it_changes(network):
    calls = []
    hook = network.register_forward_hook(lambda *_: calls.append(1))
    pictures = torch.rand(5, 3, 32, 32)
    assert network.read(pictures) is network.read(pictures)
    assert len(calls) == 1
    pictures[0] = 0
    network.read(pictures)
    network.read(pictures[:3])
    assert len(calls) == 3
    hook.remove()


def test_pictures_that_are_not_finite_are_refused(network):
    for bad in (math.nan, math.inf):
        pictures = torch.rand(2, 3, 32, 32)
        pictures[1, 0, 0, 0] = bad
        with pytest.raises(ValueError, match="NaN or infinite"):
            network.read(pictures)


# ------------------------------------------------------------------------------------------ SegFormer


def test_segformer_learns_and_reads_like_any_verifier(short, monkeypatch):
    pytest.importorskip("transformers", reason="the SegFormer verifier needs transformers")
    from benchmark.judges.segformer import Segformer

    tiny = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "decoder_hidden_size": 8}
    monkeypatch.setattr(verifier, "_body", lambda kind, shape: Segformer(verifier.FEATURES, **tiny))
    monkeypatch.setattr(Segformer, "pretrain", lambda self: None)
    monkeypatch.setattr(Segformer, "updates", 2)
    data = Easy(side=64)
    data.verifier = "segformer"
    network = verifier.of(data, say=str)
    assert network.facts["kind"] == "segformer"
    found = network.read(data.rows("test", torch.arange(3))["left"])
    assert found.features.shape == (3, verifier.FEATURES)


def test_segformer_begins_with_pretrained_weights(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="the SegFormer verifier needs transformers")
    from benchmark.api import UserError
    from benchmark.judges.segformer import Segformer

    tiny = {"hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1], "decoder_hidden_size": 8}
    kept = transformers.SegformerModel(transformers.SegformerConfig(**tiny))
    kept.save_pretrained(tmp_path / "mit-b0")
    monkeypatch.setenv("MUNI_BENCH_DATA", str(tmp_path))
    network = Segformer(verifier.FEATURES, **tiny)
    name = next(name for name, value in kept.state_dict().items() if value.ndim == 2)
    assert not torch.equal(network.encoder.state_dict()[name], kept.state_dict()[name])
    network.pretrain()
    assert all(torch.equal(network.encoder.state_dict()[name], value) for name, value in kept.state_dict().items())
    (tmp_path / "mit-b0" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"mit-b0 cannot be loaded .* put its files into"):
        network.pretrain()


@pytest.mark.parametrize("instructions", [False, True])
def test_the_smallest_pictures_never_train_in_half_the_bits(instructions, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: instructions)
    assert [verifier._bfloat16("cpu", side) for side in (16, 32, 64)] == [False, instructions, instructions]
    assert verifier._bfloat16("cuda", 16)


def test_an_unknown_verifier_names_the_nearest():
    from benchmark.api import UserError

    data = Easy()
    data.verifier = "segfomer"
    with pytest.raises(UserError, match="unknown verifier 'segfomer': did you mean 'segformer'"):
        verifier.of(data)


def test_segformer_without_transformers_says_what_to_install(monkeypatch):
    import sys

    from benchmark.api import UserError

    monkeypatch.setitem(sys.modules, "transformers", None)
    data = Easy()
    data.verifier = "segformer"
    with pytest.raises(UserError, match="needs transformers: pip install"):
        verifier.of(data)
