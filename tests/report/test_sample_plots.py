"""What bench sample writes: rows that can be checked against the method, and pictures of exactly these rows."""

from __future__ import annotations

import io
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmark import registry
from benchmark.api import Cell, UserError
from benchmark.cli import commands
from benchmark.engine import execution
from benchmark.records import run_identity
from benchmark.records.job import Job
from benchmark.report import plots, sample_plots
from benchmark.runtime import Draws

SMALL = ["updates=100", "train_rows=500", "evaluation_rows=300", "unconditional_rows=300", "batch_rows=32"]
NOTHING = (Cell("gaussian_mixture", (), ("x1", "x2", "x3")),)


def prepared(runs: Path, method: str = "muni") -> run_identity.Run:
    return run_identity.prepare(Job(method, "gaussian_mixture", "smoke", 0, NOTHING, ("shared_mse",)), runs, SMALL)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> run_identity.Run:
    """A finished run."""
    made = prepared(tmp_path_factory.mktemp("show") / "runs")
    assert execution.execute([made], "cpu", lambda *_: None) == []
    return made


@pytest.fixture
def unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures, as without matplotlib: they take most of the time."""
    monkeypatch.setattr(plots, "find_spec", lambda name: None)


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize("given", [(), ("x2",), ("x1", "x3")])
def test_the_file_holds_what_the_method_generates(
    run: run_identity.Run, tmp_path: Path, given: tuple[str, ...]
) -> None:
    want = tuple(name for name in ("x1", "x2", "x3") if name not in given)
    sample_plots.write_samples(run, given, 300, "cpu", tmp_path)
    found = load_file(tmp_path / f"{'+'.join(given) or 'nothing'}_to_{'+'.join(want)}.safetensors")
    assert found.keys() == {f"given.{name}" for name in given} | {
        f"{kind}.{name}" for kind in ("generated", "real") for name in want
    }
    method, data, _ = execution.trained_method(run, "cpu")
    real = data.rows("test", torch.arange(300))
    draws = Draws("sample", Cell("gaussian_mixture", given, want), 0, rows=300)
    with torch.no_grad():
        generated = method.sample({name: real[name] for name in given}, want, 300, draws)
    assert all(torch.equal(found[f"given.{name}"], real[name]) for name in given)
    assert all(torch.equal(found[f"real.{name}"], real[name]) for name in want)
    assert all(torch.equal(found[f"generated.{name}"], generated[name]) for name in want)
    assert found[f"generated.{want[0]}"].std() > 0.5  # and it is no constant


@pytest.mark.usefixtures("unseen")
def test_fewer_rows_are_the_first_ones_and_the_order_of_given_is_nothing(run: run_identity.Run, tmp_path: Path) -> None:
    sample_plots.write_samples(run, ("x1", "x3"), 300, "cpu", tmp_path / "a")
    sample_plots.write_samples(run, ("x3", "x1"), 40, "cpu", tmp_path / "b")
    many, few = (load_file(tmp_path / folder / "x1+x3_to_x2.safetensors") for folder in "ab")
    torch.testing.assert_close(few["generated.x2"], many["generated.x2"][:40], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize("given", [(), ("x1",), ("x1", "x2")])
def test_the_printed_coherence_is_the_metric_on_these_rows(
    run: run_identity.Run, tmp_path: Path, given: tuple[str, ...]
) -> None:
    lines = sample_plots.write_samples(run, given, 128, "cpu", tmp_path)
    found = load_file(next(tmp_path.glob("*.safetensors")))
    rows = {
        name: {key.partition(".")[2]: value for key, value in found.items() if key.startswith(name)}
        for name in ("given", "generated", "real")
    }
    _, data, _ = execution.trained_method(run, "cpu")
    metric = registry.load("metric", "shared_mse")(Cell("gaussian_mixture", given, tuple(rows["generated"])), data)
    metric.update(rows["real"] | rows["given"], rows["generated"])
    assert f"MSE {metric.compute().value:#.3g} " in lines[1]


def test_the_same_call_writes_the_same_bytes(run: run_identity.Run, tmp_path: Path) -> None:
    for folder in "ab":
        sample_plots.write_samples(run, ("x1", "x2"), 16, "cpu", tmp_path / folder)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["training.png", "x1+x2_to_x3.png", "x1+x2_to_x3.safetensors"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_a_method_that_trains_nothing_needs_no_run(tmp_path: Path) -> None:
    lines = sample_plots.write_samples(prepared(tmp_path / "runs", "chance"), (), 64, "cpu", tmp_path)
    assert float(lines[1].split("MSE ")[1].split()[0]) > 20
    assert not (tmp_path / "training.png").exists()


def test_without_a_trained_run_the_line_says_the_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made = prepared(tmp_path / "my runs")
    with pytest.raises(UserError, match="has no trained model: train it with: bench run ") as error:
        sample_plots.write_samples(made, (), 8, "cpu", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # The command is right when it plans exactly this run.
    words = shlex.split(str(error.value).split("train it with: ")[1])
    commands.app([*words[1:], "--plan"], standalone_mode=False)
    assert str(made.directory) in capsys.readouterr().out


def test_a_run_that_stopped_half_way_is_not_shown(tmp_path: Path) -> None:
    made = prepared(tmp_path / "runs")
    with pytest.raises(execution.Stopped):
        execution.execute([made], "cpu", lambda *_: None, max_seconds=0)
    with pytest.raises(UserError, match=r"stands at update 50 of 100: train it with: bench run .* --set updates=100 "):
        sample_plots.write_samples(made, (), 8, "cpu", tmp_path)


@pytest.mark.parametrize(
    ("given", "rows", "message"),
    [
        (("x4",), 8, r"--given x4: Gaussian mixture has no such modality: did you mean 'x\d'\?"),
        (("x1", "x2", "x3"), 8, r"--given x1[+]x2[+]x3: nothing is left to generate"),
        ((), 601, "--rows 601: gaussian_mixture has 600 test rows"),
    ],
)
def test_what_cannot_be_asked(
    run: run_identity.Run, tmp_path: Path, given: tuple[str, ...], rows: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sample_plots.write_samples(run, given, rows, "cpu", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_the_method_does_not_support(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ShaLa-style does not support many_to_one"):
        sample_plots.write_samples(prepared(tmp_path, "shala"), ("x1", "x2"), 8, "cpu", tmp_path)


def test_a_folder_that_cannot_be_written(run: run_identity.Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*; name another folder with --out"):
        sample_plots.write_samples(run, (), 8, "cpu", tmp_path / "file")


@pytest.mark.usefixtures("unseen")
def test_without_matplotlib_a_line_says_how_to_get_it(run: run_identity.Run, tmp_path: Path) -> None:
    lines = sample_plots.write_samples(run, (), 8, "cpu", tmp_path)
    assert "no picture" in lines[-1] and "pip install" in lines[-1] and "[plots]" in lines[-1]
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_the_picture_shows_exactly_the_rows() -> None:
    source = torch.tensor([[0.0, 2.0], [4.0, -6.0]])
    pairs = [("x1", "x2", source, source), ("x1", "x3", source, source + 3)]
    views = {"x2": [("all", torch.tensor([[-2.0, 0.0], [2.0, 4.0]]), torch.tensor([[0.5, 1.5]]))]}
    figure = sample_plots.draw("MUNI: x1\n2 rows", pairs, views)
    shown = [ax for ax in figure.get_axes() if ax.axison]
    assert [ax.get_title() for ax in shown] == ["MSE 0.00", "MSE 9.00", "all"]
    points = shown[1].collections[0].get_offsets().tolist()
    assert points == [[0, 3], [2, 5], [4, 7], [-6, -3]]
    real, generated = (each.get_offsets().tolist() for each in shown[2].collections)
    assert real == [[-2, 0], [2, 4]] and generated == [[0.5, 1.5]]
    low, high = shown[2].get_xlim()
    assert low < -2 and high > 2


def test_a_runaway_target_does_not_shrink_the_picture() -> None:
    source = torch.tensor([[1.0], [-2.0]])
    ax = sample_plots.draw("", [("x1", "x2", source, source * 1e6)], {}).get_axes()[0]
    assert ax.get_ylim() == pytest.approx((-2.2, 2.2))


def test_the_main_plane_is_of_the_real_rows() -> None:
    """Real rows vary along two known axes: the first is found first; generated rows are measured from their mean."""
    generator = torch.Generator().manual_seed(0)
    along = torch.randn(2000, 2, generator=generator, dtype=torch.float64) * torch.tensor([5.0, 2.0])
    real = torch.zeros(2000, 4, dtype=torch.float64)
    real[:, 3], real[:, 1] = along[:, 0] + 7, along[:, 1]
    generated = torch.tensor([[0.0, 0, 0, 7 + 5], [9, 2, 9, 7]], dtype=torch.float64)
    seen, few = sample_plots._main_plane(real, generated)
    assert seen.std(0).tolist() == pytest.approx([5, 2], rel=0.05)
    assert few.abs().tolist() == [
        [pytest.approx(5, abs=0.3), pytest.approx(0, abs=0.3)],
        [pytest.approx(0, abs=0.3), pytest.approx(2, abs=0.3)],
    ]


def test_the_training_curve_shows_every_part() -> None:
    curve = [{"update": 50, "loss": 3.0, "prior": 2.0}, {"update": 100, "loss": 1.0, "prior": -1.0}]
    figure = sample_plots.draw_training("MUNI", curve)
    lines = {ax.get_title(): ax.lines[0].get_xydata().tolist() for ax in figure.get_axes()}
    assert lines == {"loss": [[50, 3], [100, 1]], "prior": [[50, 2], [100, -1]]}


def test_pictures_are_png(run: run_identity.Run, tmp_path: Path) -> None:
    from matplotlib.image import imread

    sample_plots.write_samples(run, (), 16, "cpu", tmp_path)
    for name in ("training.png", "nothing_to_x1+x2+x3.png"):
        picture = imread(io.BytesIO((tmp_path / name).read_bytes()), format="png")
        assert min(picture.shape[:2]) > 200 and picture.std() > 0.02
