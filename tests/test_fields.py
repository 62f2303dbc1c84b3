"""Fields that a card declares: read strictly, set by the user, hashed where they count; and recipes that inherit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmark import registry
from benchmark.api import Cell, UserError
from benchmark.config import PRESETS, SETTINGS, check_fields, digest, marked, resolve
from benchmark.engine import execution, tune
from benchmark.records import run_identity
from benchmark.records.job import Job, job_of
from benchmark.records.results_file import latest, load
from benchmark.records.selection import Settings
from tests.helpers.command import bench

MIXTURE = registry.card("dataset", "gaussian_mixture")
SMALL = ("train_rows=300", "evaluation_rows=64", "unconditional_rows=64", "updates=2", "batch_rows=16")
CELL = Cell("gaussian_mixture", ("x1",), ("x2",))

METRIC = """
from benchmark.api import MetricCard, Score

CARD = MetricCard(
    version=1, label="Power", units="squared units", higher_is_better=False, scale="log", tasks=("one_to_one",),
    estimator="mean", chance="none", ceiling="none", min_rows=2,
    fields={"power": {"value": 2, "smoke": 3, "source": "assumed", "positive": True}},
)


class Power:
    power: int

    def __init__(self, cell, data):
        self.rows = 0

    def update(self, real, generated):
        self.rows += len(real["x1"])

    def compute(self):
        return Score(float(self.power), None, self.rows)


METRIC = Power
"""


def field(**changes: Any) -> dict[str, Any]:
    return {"value": 0.5, "source": "assumed"} | changes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"updates": field()}, r"fields\['updates'\]: the suite has a field of this name"),
        ({"a b": field()}, "a field's name is an identifier"),
        ({"f": 0.5}, r'fields\[\'f\'\]: write {"value": ..., "source": '),
        ({"f": {"value": 0.5}}, '"source": "where it comes from"'),
        ({"f": field(source="")}, "source = '' is no str, or is empty"),
        ({"f": field(value=[1.0])}, "a value is one of bool, int, float, str"),
        ({"f": field(cpu=1)}, "cpu = 1 is no float, as its value is"),
        ({"f": field(leest=0)}, "unknown key 'leest': did you mean 'least'"),
        ({"f": field(least="0")}, "least = '0' is no int"),
        ({"f": field(least=1)}, r"fields\['f'\]: value = 0.5: must be at least 1"),
        ({"f": field(most=1, gpu=2.0)}, "gpu = 2.0: must be at most 1"),
        ({"f": field(value=0.0, positive=True)}, "value = 0.0: must be greater than 0"),
        ({"f": field(value="a", choices=["b", "c"])}, "value = 'a': choose b or c"),
        ({"f": field(scales_with="gradient")}, "a float scales with a float field"),
        ({"mixture": field()}, r"fields\['mixture'\]: a variant sets it, too"),
    ],
)
def test_a_wrong_field_is_one_line(fields: Any, message: str) -> None:
    check_fields(replace(registry.card("method", "muni"), fields={"f": field(least=0, most=1, cpu=1.0)}))
    with pytest.raises(UserError, match=message) as caught:
        check_fields(replace(registry.card("method", "muni"), fields=fields))
    assert "\n" not in str(caught.value)


def test_the_files_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "power.py"
    path.write_text(METRIC.replace('"value": 2', '"value": -2'))
    with pytest.raises(UserError, match=rf"{path}:4: CARD: fields\['power'\]: value = -2: must be greater than 0"):
        registry.read_card(path)
    path.write_text(METRIC.replace("    power: int\n", ""))
    with pytest.raises(UserError, match=f"{path}: fields: Power does not declare 'power': write power: int"):
        registry.load("metric", str(path))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("beta=-1", r"beta = -1.0: must not be negative"),
        ("alpha=1.5", r"alpha = 1.5: must be at most 1"),
        ("alpha=much", "'much' is not of type float"),
        ("bta=1", "no field 'bta': did you mean 'beta'"),
        ("kl_weight=1", "no field 'kl_weight'"),
    ],
)
def test_set_knows_the_methods_own_fields_alone(words: str, message: str) -> None:
    card = registry.card("method", "mvtcae")
    found = resolve(MIXTURE, card, "smoke", ["beta=2"])
    assert (found.config.own_values["beta"], found.source["beta"]) == (2.0, "--set")
    assert found.source["alpha"] == f"{card.fields['alpha']['source']} (of MVTCAE)"
    with pytest.raises(UserError, match=message):
        resolve(MIXTURE, card, "smoke", [words])


def test_two_plug_ins_of_a_run_cannot_share_a_name() -> None:
    method = replace(registry.card("method", "muni"), fields={"size": field()})
    with pytest.raises(UserError, match="Gaussian mixture and MUNI both declare the field 'size': rename one"):
        resolve(replace(MIXTURE, fields={"size": field()}), method, "smoke")


def test_the_class_has_the_values() -> None:
    plain, own = registry.load("method", "mvtcae"), registry.load("method", "mvtcae", {"beta": 2.0, "other": 1})
    assert (plain.beta, own.beta, own.alpha) == (0.13333333333333333, 2.0, plain.alpha)
    assert registry.load("method", "mopoe", {"beta": 2.0}) is registry.load("method", "mopoe")


# ------------------------------------------------------------------------------------------ ids


def prepared(method: str, *overrides: str, metrics: tuple[str, ...] = ()) -> run_identity.Run:
    return run_identity.prepare(Job(method, "gaussian_mixture", "smoke", 0, (), metrics), Path("runs"), overrides)


@pytest.mark.parametrize("method", sorted(registry.index("method")))
def test_only_who_has_a_field_hashes_it(method: str) -> None:
    run = prepared(method)
    plain = {name: getattr(run.config, name) for name in SETTINGS}
    training = {name: value for name, value in plain.items() if name not in marked("scoring")}
    alone = (digest([plain, *run.what]), digest([training, *run.what]))
    assert ((run.run_id, run.training_id) == alone) == (not run.method_card.fields)


def test_a_changed_field_is_another_training_and_one_of_scoring_is_not() -> None:
    card = registry.card("method", "mopoe")
    card = replace(card, fields={"trained": field(), "told": field(scoring=True)})
    usual, other, told = (resolve(MIXTURE, card, "smoke", words).config for words in ([], ["trained=1"], ["told=1"]))
    assert prepared("mvtcae", "beta=2").training_id != prepared("mvtcae").training_id
    assert other.training_values() != usual.training_values() == told.training_values()
    assert usual.protocol() == other.protocol() == resolve(MIXTURE, None, "smoke").config.protocol() != told.protocol()
    assert told.values() != usual.values()


@pytest.fixture
def power(tmp_path: Path) -> str:
    path = tmp_path / "power.py"
    path.write_text(METRIC)
    return str(path)


def test_a_metrics_field_is_its_own_rows_affair(power: str, tmp_path: Path) -> None:
    job = job_of("chance", "gaussian_mixture", "smoke", 0, [(CELL, "shared_mse"), (CELL, power)])
    usual, other = (run_identity.prepare(job, tmp_path / "runs", [*SMALL, *words]) for words in ([], ["power=5"]))
    assert (usual.run_id, usual.training_id) == (other.run_id, other.training_id)
    assert execution.execute([usual], "cpu", lambda *_: None) == []
    assert run_identity.missing(usual) == [] and run_identity.missing(other) == [(CELL, power)]
    assert execution.execute([other], "cpu", lambda *_: None) == []
    assert run_identity.missing(usual) == run_identity.missing(other) == []
    rows = latest(load(usual.results))
    powers = rows[rows["metric"] == "power"].set_index("value")
    assert sorted(powers.index) == [3.0, 5.0]  # the preset's value, and the user's
    (same,) = rows[rows["metric"] == "shared_mse"]["protocol"]
    assert powers.loc[3.0, "protocol"] == same and powers.loc[5.0, "protocol"].startswith(f"{same}+")
    assert usual.row_id("power") == usual.run_id == other.row_id("shared_mse") != other.row_id("power")
    own = Settings(preset="smoke", runs=tmp_path / "runs", overrides=SMALL)
    assert sorted(own.rows()["value"]) == sorted(rows[rows["run_id"] == usual.run_id]["value"])


def test_info_shows_a_metrics_field(power: str) -> None:
    assert "power                         3   assumed (of Power)" in bench("info", power, "--preset", "smoke").out
    assert (
        "power                         7   --set" in bench("info", power, "--preset", "smoke", "--set", "power=7").out
    )
    assert bench("info", power, "--set", "power=0").status == 2


def test_sample_names_the_field_in_the_command_that_trains(tmp_path: Path) -> None:
    answer = bench("sample", "-m", "mvtcae", "--preset", "smoke", "--set", "beta=2", "--runs", tmp_path)
    assert answer.status == 2 and "--set beta=2.0" in answer.err


# ------------------------------------------------------------------------------------------ the weights of methods


@pytest.mark.parametrize("dataset", sorted(registry.index("dataset")))
def test_methods_have_the_weights_that_they_borrowed(dataset: str) -> None:
    card = registry.card("dataset", dataset)
    for preset in card.recipe.keys() & set(PRESETS):
        for method, weights in {
            "mvtcae": {"beta": 400 / 3, "alpha": None},
            "shala": {"kl_weight": 1},
            "mmvaeplus": {"private_kl_weight": 1},
        }.items():
            config = resolve(card, registry.card("method", method), preset).config
            shared = config.encoder_grad_scale
            expected = {name: 5 / 6 if times is None else shared * times for name, times in weights.items()}
            assert config.own_values == pytest.approx(expected, rel=1e-15)


def test_a_search_of_the_shared_scale_varies_the_methods_own_weight() -> None:
    search = tune.load_search("tuning")
    point = ["learning_rate=0.0015", "encoder_grad_scale=0.01"]
    found = {
        method: tune._overrides(search, job_of(method, search.dataset, "cpu", 0, []), point)[len(search.fixed) :]
        for method in ("muni", "mvtcae", "shala", "mmvaeplus")
    }
    assert found == {
        "muni": point,
        "mvtcae": [*point, "beta=1.3333333333333333"],
        "shala": [*point, "kl_weight=0.01"],
        "mmvaeplus": [*point, "private_kl_weight=0.01"],
    }
    shown = tune.render(tune.load_search("mvtcae_beta"), tune.read_lines(tune.load_search("mvtcae_beta").lines), "cpu")
    assert shown.startswith("| beta | 0.001333 | 0.01333 | 0.1333 | 1.333 |") and "—" not in shown


# ------------------------------------------------------------------------------------------ recipes

# Of all presets' configurations, as they were when each recipe was written out in full.
CONFIGURATIONS = {
    "gaussian_mixture": "e856913751",
    "image_text_audio": "dd781d0ec2",
    "mnist_svhn": "e87578a4b0",
    "polymnist": "b04c7d7f97",
    "polymnist_quadrant_labels": "120ffe8452",
    "spoken_digits": "1f5ccd10cb",
}


@pytest.mark.parametrize("dataset", CONFIGURATIONS)
def test_resolved_configurations_stay_as_they_are(dataset: str) -> None:
    """A recipe that is meant to change changes its hash here, and those of the datasets that are like it."""
    card = registry.card("dataset", dataset)
    presets = [part for part in card.recipe if part != "shared"]
    assert digest({each: resolve(card, None, each).config.values() for each in presets}) == CONFIGURATIONS[dataset]


HEIR = """
CARD = DatasetCard(
    version=1, label="Heir", paper="none", modalities=("a", "b"), like="{like}",
    recipe={{
        "shared": {{"label_width": None, "latent_size": (7, "own")}},
        "gpu": None,
        "cpu": {{"patch": (4, "own")}},
    }},
)
"""


def test_a_recipe_inherits_but_for_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "heir.py"
    path.write_text(HEIR.format(like="polymnist_quadrant_labels"))
    base, heir = registry.card("dataset", "polymnist_quadrant_labels"), registry.card("dataset", str(path))
    assert heir.recipe.keys() == base.recipe.keys() - {"gpu"}
    assert all("label_width" not in part for part in heir.recipe.values())
    assert heir.recipe["shared"]["latent_size"] == (7, "own") and heir.recipe["cpu"]["patch"] == (4, "own")
    assert heir.recipe["shared"]["clip_norm"] == (1.0, "as PolyMNIST-Quadrant-Labels: paper, Table E.2")
    assert resolve(heir, None, "cpu").config == replace(
        resolve(base, None, "cpu").config, label_width=0, latent_size=7, patch=4
    )


def test_what_a_recipe_is_like_is_there_and_is_not_itself(tmp_path: Path) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text(HEIR.format(like=other))
    other.write_text(HEIR.format(like=one))
    with pytest.raises(UserError, match=r"CARD: like = '.*', which is like this one"):
        registry.read_card(one)
    one.write_text(HEIR.format(like="polymnst"))
    with pytest.raises(UserError, match=r"one\.py: CARD: like: unknown dataset 'polymnst': did you mean 'polymnist'"):
        registry.read_card(one)
