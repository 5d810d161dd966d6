"""The ledger: the paper's numbers complete and unmixed, ours never invented."""

import csv
import re
from dataclasses import replace
from types import SimpleNamespace

import nbformat
import pytest

from cclkit.errors import DataError, EvaluationError
from cclkit.notebook import population
from cclkit.places import project_folder
from lab.__main__ import main
from lab.reproduction import jobs, ledger


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    with pytest.MonkeyPatch.context() as m:
        m.setenv("CCLKIT_DATA", str(tmp_path_factory.mktemp("data")))
        m.setenv("CCLKIT_RESULTS", str(tmp_path_factory.mktemp("results")))
        yield ledger.rows()


def test_every_number_of_the_papers_tables_is_there(every):
    assert len(every) == 7 * 5 + 4 * 5 + 3 * 5
    value = {(r.table, r.method, r.scene): r.paper for r in every}
    assert len(value) == len(every)
    # spot checks against the paper: its own numbers, a baseline, an arm
    assert (
        value[1, "CCL-LGS", "average"] == 65.6
        and value[1, "3D VL-GS", "teatime"] == 73.5
        and value[1, "LangSplat", "waldo_kitchen"] == 44.5
    )
    assert (
        value[2, "pull", "teatime"] == 70.1
        and value[2, "push", "waldo_kitchen"] == 59.3
        and value[3, "CCL-LGS", "bed"] == 97.3
    )
    assert {
        arm: value[2, m, "average"]
        for arm, m in (
            ("baseline", "baseline"),
            ("pull", "pull"),
            ("push", "push"),
            ("both", "both (CCL-LGS)"),
        )
    } == population.PAPER_TABLE_2
    # Room is left out
    assert {r.scene for r in every if r.table == 3} == {
        "bed",
        "bench",
        "sofa",
        "lawn",
        "average",
    }
    assert {r.method for r in every if not r.seen_in_paper} == {
        "Feature-3DGS",
        "LEGaussians",
        "GS-Grouping",
    }


def test_without_a_run_nothing_is_claimed(every):
    assert all(
        r.ours is None and r.minutes is None and r.status.startswith("not run: ") for r in every
    )
    why = {r.status for r in every if r.method == "CCL-LGS" and r.scene == "ramen"}
    assert len(why) == 1 and not why & {"not run: another method, quoted"} and len(why.pop()) > 12
    text = ledger.as_markdown(every)
    assert text.count("not run") == 6 * 5 and "✓" not in text


def test_ours_comes_only_from_joint_training(monkeypatch):
    for mode, counts in (("joint", True), ("rasterised", False), ("cached", False)):
        r = SimpleNamespace(
            run=SimpleNamespace(config=SimpleNamespace(field=SimpleNamespace(mode=mode)))
        )
        assert (ledger.reason(r) == "") == counts
    config = SimpleNamespace(field=SimpleNamespace(mode="cached"))
    cached = SimpleNamespace(
        run=SimpleNamespace(config=config), found=lambda stage: pytest.fail("was looked at")
    )
    assert ledger.measured(cached) is None


def measured_rows(monkeypatch, scores, protocol=lambda scene: "langsplat"):
    monkeypatch.setattr(ledger, "reason", lambda r: "")
    monkeypatch.setattr(
        ledger,
        "measured",
        lambda r: (
            ledger.Measured(scores[r.scene], protocol(r.scene), {r.scene: 2.0})
            if r.scene in scores
            else None
        ),
    )
    return {(r.table, r.method, r.scene): r for r in ledger.rows()}


def test_status_follows_the_tolerance_and_averages_need_all_scenes(monkeypatch, tmp_path):
    monkeypatch.setenv("CCLKIT_RESULTS", str(tmp_path))
    monkeypatch.setenv("CCLKIT_DATA", str(tmp_path))
    scores = {
        "lerf_ovs/ramen": 62.3 - 1.9,
        "lerf_ovs/figurines": 61.2 + 2.1,
        "lerf_ovs/teatime": 71.8,
    }
    got = measured_rows(monkeypatch, scores)
    ours = {
        s: got[1, "CCL-LGS", s]
        for s in ("ramen", "figurines", "teatime", "waldo_kitchen", "average")
    }
    assert [ours[s].status.partition(":")[0] for s in ours] == [
        "reproduced",
        "differs",
        "reproduced",
        "not run",
        "not run",
    ]
    # shared stages count once
    assert (
        ours["ramen"].seeds == "3 of 3"
        and ours["ramen"].minutes == 2.0
        and "waldo_kitchen" in ours["average"].status
    )
    assert got[1, "LangSplat", "ramen"].ours is None  # another method's number never becomes ours
    got = measured_rows(monkeypatch, scores | {"lerf_ovs/waldo_kitchen": 67.1})
    average = got[1, "CCL-LGS", "average"]
    assert (
        abs(average.ours - (60.4 + 63.3 + 71.8 + 67.1) / 4) < 1e-9
        and average.status == "reproduced"
        and "60.4 ✓" in ledger.as_markdown(list(got.values()))
    )


def test_protocols_and_families_do_not_share_a_table(monkeypatch, every, tmp_path):
    with pytest.raises(EvaluationError, match="family is .* and .*not comparable"):
        ledger.as_markdown([*every[:5], replace(every[5], family="GAGS")])
    with pytest.raises(EvaluationError, match="our_protocol"):
        ledger.as_markdown(
            [replace(every[0], our_protocol="langsplat"), replace(every[1], our_protocol="paper")]
        )
    monkeypatch.setenv("CCLKIT_RESULTS", str(tmp_path))
    with pytest.raises(EvaluationError, match="two protocols do not share a table"):
        measured_rows(
            monkeypatch, {"lerf_ovs/ramen": 1.0, "lerf_ovs/teatime": 1.0}, lambda scene: scene
        )


def test_links_lead_to_cells(every):
    for link in {r.cell for r in every}:
        path, _, anchor = link.partition("#cell-id=")
        cells = {c.id: c for c in nbformat.read(project_folder() / path, 4).cells}
        assert anchor in cells and "nb.table(" in cells[anchor].source


def test_tables_that_cannot_be_right_are_refused(tmp_path):
    good = ledger.FILE.read_text()
    for bad, match in (
        (good.replace("51.2,", "", 1), "are not 4 numbers"),
        (good.replace("51.2", "61.2", 1), "are not 4 numbers and their average"),
        ("[", "cannot be read"),
        (good.replace("family = ", "famly = ", 1), "KeyError.*family"),
    ):
        (tmp_path / "l.toml").write_text(bad)
        with pytest.raises(DataError, match=match):
            ledger.load_tables(tmp_path / "l.toml")
    with pytest.raises(DataError, match="work from one"):
        ledger.load_tables(tmp_path / "none.toml")


def test_the_command_writes_csv_and_markdown(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CCLKIT_RESULTS", str(tmp_path))
    assert main(["ledger"]) == 0
    assert "70 numbers of the paper: 0 reproduced, 0 differs, 70 not run" in capsys.readouterr().out
    lines = list(csv.DictReader(open(tmp_path / "ledger.csv")))
    assert len(lines) == 70 and {
        "paper",
        "ours",
        "profile",
        "tolerance",
        "status",
        "minutes",
        "cell",
    } <= set(lines[0])
    assert (tmp_path / "ledger.md").read_text() == ledger.as_markdown(ledger.rows()) and not (
        tmp_path / "ledger_tabletop.md"
    ).exists()
    assert not list(tmp_path.glob("*/runs"))


def test_what_tabletop_scores_stands_apart(monkeypatch):
    found = SimpleNamespace(
        json=lambda name: {
            "protocol": "langsplat",
            "aggregates": {"pooled": {"units": 3, "miou": 0.431}},
        },
        record={"front_end": "mini-CLIP"},
    )
    evaluated = ("tea_party", "evaluation")
    evaluations = lambda r, stage: found if (r.scene, stage) == evaluated else None
    monkeypatch.setattr(jobs.PlannedRun, "found", evaluations)
    text = ledger.tabletop_table()
    assert (
        "another data set than the paper's" in text
        and re.search(r"tea_party \| both \| langsplat \| +3 \| +43.1", text)
        and "breakfast_bench" not in text
    )
    assert set(jobs.GRIDS["mini"].scenes).isdisjoint(jobs.GRIDS["paper"].scenes)
