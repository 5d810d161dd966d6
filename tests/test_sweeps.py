"""Sweeps: every combination once, resumed where stopped, computed again when something changed, and
clear errors.
"""

import os
import threading

import pytest

from cclkit.config import Config
from cclkit.errors import ConfigError
from cclkit.notebook import measured
from cclkit.notebook.population import mechanism
from cclkit.runs.store import Store
from lab.__main__ import main
from lab.experiments import sweeps

SMALL = """
title = "small"
kind = "population"
[fixed]
"population.n_classes" = 4
"population.n_views" = 5
"codebook.steps" = 30
"codebook.n_prototypes" = 8
[grid]
"population.incomplete" = [0.0, 0.5]
arm = ["baseline", "both"]
seed = [0, 3]
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return path


class Alone:
    """multiprocessing's pool in this process, so that a test can count and stop runs."""

    seen: list = []
    stop_at = None

    def __init__(self, workers):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def close(self):
        pass

    def join(self):
        pass

    def imap_unordered(self, f, jobs):
        for job in jobs:
            if len(self.seen) == self.stop_at:
                raise KeyboardInterrupt
            self.seen.append(job[0])
            yield f(job)


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setattr(
        sweeps.multiprocessing, "get_context", lambda how: type("Context", (), {"Pool": Alone})
    )
    Alone.seen, Alone.stop_at = [], None
    return Alone


def test_every_combination_once_in_the_grid_s_order(file, tmp_path, alone):
    path = sweeps.run_sweep(
        measured.load_sweep(file), tmp_path / "out", Config(), report=lambda _: None
    )
    rows = measured.read_sweep(path)
    assert [(r["population.incomplete"], r["arm"], r["seed"]) for r in rows] == [
        (i, a, s) for i in ("0.0", "0.5") for a in ("baseline", "both") for s in ("0", "3")
    ]
    small = Config().with_settings({"codebook.steps": 30, "codebook.n_prototypes": 8}).codebook
    expected = mechanism(
        small, seeds=(0, 3), arms=("baseline", "both"), n_classes=4, n_views=5, incomplete=0.5
    )
    found = measured.series(rows, "population.incomplete")
    for arm in ("baseline", "both"):
        assert found[arm][0.5] == pytest.approx(expected[arm], abs=1e-3)
    assert found["both"][0.0] != found["both"][0.5]


def test_a_stopped_sweep_goes_on_and_changed_code_starts_over(file, tmp_path, alone, monkeypatch):
    sweep, lines = measured.load_sweep(file), []
    alone.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        sweeps.run_sweep(sweep, tmp_path, Config(), report=lines.append)
    assert len(measured.read_sweep(tmp_path / "small.csv")) == 3
    alone.stop_at = None
    whole = sweeps.run_sweep(sweep, tmp_path, Config(), report=lines.append).read_bytes()
    assert len(alone.seen) == len(set(alone.seen)) == 8 and "small: 8 runs, 3 found" in lines
    sweeps.run_sweep(sweep, tmp_path, Config(), report=lines.append)
    assert len(alone.seen) == 8 and (tmp_path / "small.csv").read_bytes() == whole
    assert measured.outdated_sweep(tmp_path / "small.csv", Config(), file.parent) == 0
    monkeypatch.setattr(measured, "code_key", lambda *code: "changed")
    assert measured.outdated_sweep(tmp_path / "small.csv", Config(), file.parent) == 8
    sweeps.run_sweep(sweep, tmp_path, Config(), report=lines.append)
    assert (
        len(alone.seen) == 16
        and measured.outdated_sweep(tmp_path / "small.csv", Config(), file.parent) == 0
    )


def test_two_sweeps_in_one_folder_keep_each_other_s_rows(file, tmp_path, alone, capfd):
    sweep, lines = measured.load_sweep(file), []
    alone.stop_at = 3
    with Store(tmp_path / "out").lock():  # the first, under way
        with pytest.raises(KeyboardInterrupt):
            sweeps.run_sweep(sweep, tmp_path, Config(), report=lines.append)
        second = threading.Thread(
            target=sweeps.run_sweep,
            args=(sweep, tmp_path / "out", Config()),
            kwargs={"report": lines.append},
        )
        second.start()
        second.join(0.5)
        assert second.is_alive() and len(lines) == 1  # it has not even looked at the rows
        (tmp_path / "small.csv").rename(tmp_path / "out/small.csv")
        alone.stop_at = None
    second.join(60)
    assert (
        not second.is_alive()
        and "small: 8 runs, 3 found" in lines
        and len(measured.read_sweep(tmp_path / "out/small.csv")) == 8
    )
    assert (
        f"{tmp_path / 'out'}: in use by another run (process {os.getpid()}); waiting for it"
        in capfd.readouterr().err
    )


def test_gains_are_paired_by_seed():
    rows = [
        {"arm": a, "margin": m, "seed": s, "miou": v}
        for a, m, s, v in (
            ("baseline", "0.5", "0", "10"),
            ("baseline", "0.5", "1", "50"),
            ("both", "0.5", "0", "12"),
            ("both", "0.5", "1", "51"),
        )
    ]
    assert measured.gains(rows, "margin") == {"both": {0.5: [2.0, 1.0]}}
    assert measured.gains(rows[2:], "margin", baseline=[10.0, 50.0]) == {"both": {0.5: [2.0, 1.0]}}


@pytest.mark.parametrize(
    "change, message",
    [
        (('kind = "population"', 'kind = "people"'), "kind is 'people'"),
        (("seed = [0, 3]", "seed = []"), "grid.seed"),
        (("seed = [0, 3]", "seed = [-1]"), "seed -1"),
        (('arm = ["baseline", "both"]', 'arm = ["none"]'), "arm 'none' is unknown"),
        (('"population.incomplete"', '"population.colour"'), "'population.colour' is unknown"),
        (('"codebook.steps" = 30', '"codebook.lr" = 0'), "codebook.lr"),
        (('title = "small"', 'titel = "small"'), "unknown entry 'titel'"),
        (("[grid]", "seed = 1\n[grid]"), "stands in"),
        (('kind = "population"', 'kind = "scene"'), "scene is None"),
        (("[fixed]", "[fixed"), "cannot be read as a sweep"),
    ],
)
def test_a_sweep_that_cannot_run_is_refused_before_anything_runs(file, change, message):
    file.write_text(SMALL.replace(*change))
    with pytest.raises(ConfigError, match=message) as e:
        measured.load_sweep(file)
    assert "small.toml" in str(e.value)


def test_damaged_rows_are_named(file, tmp_path, alone):
    (tmp_path / "small.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="small.csv.*delete it"):
        sweeps.run_sweep(measured.load_sweep(file), tmp_path, Config(), report=lambda _: None)


def test_the_command_runs_in_processes(file, tmp_path, monkeypatch, capsys):
    file.write_text(SMALL.replace("[0.0, 0.5]", "[0.5]").replace("[0, 3]", "[0]"))
    monkeypatch.setenv("CCLKIT_RESULTS", str(tmp_path / "results"))
    assert main(["sweep", str(file)]) == 0
    assert len(measured.read_sweep(tmp_path / "results" / "mini" / "sweeps" / "small.csv")) == 2
    assert main(["sweep", str(tmp_path / "no.toml")]) == 1
    assert "no.toml" in capsys.readouterr().err


def test_committed_sweeps_can_run():
    from cclkit.places import project_folder

    varied = set()
    for f in sorted((project_folder() / "data" / "sweeps").glob("*.toml")):
        sweep = measured.load_sweep(f)
        assert len(sweep.grid["seed"]) >= 5, "bands need repetitions"
        varied |= set(sweep.grid)
    assert varied >= {
        "codebook.margin",
        "codebook.lambda_pull",
        "codebook.lambda_push",
        "codebook.n_prototypes",
        "codebook.batch",
        "codebook.steps",
        "codebook.temperature",
        "simulation.confuser_drift",
        "simulation.between_object_cosine",
    }
    assert varied >= {
        f"population.{name}" for name in ("incomplete", "unlabelled", "observed", "split", "merged")
    }
