"""What is written beside figures, the manifest, `cclkit figures verify` and `explain`."""

import json
import re
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cclkit import cli, config
from cclkit.errors import NotebookError
from cclkit.notebook import provenance
from cclkit.notebook.figures.common import plots
from cclkit.notebook.show import FigureFolder, data_digest
from cclkit.runs.run import Run

ROOT = Path(__file__).parent.parent
ABOUT = {
    "scene": "s",
    "seed": 4,
    "front_end": "f",
    "settings": {"codebook.margin": 0.5},
    "versions": {"cclkit": "1"},
}


def draw(folder, values, *, name="line", commit="abc", title="", artefacts=()):
    fig, axes = plots(1, 1)
    axes[0, 0].plot(values)
    axes[0, 0].set_title(title)
    return FigureFolder(
        folder, notebook="03_x", profile="mini", footer="f", about={**ABOUT, "commit": commit}
    ).show(fig, name, alt="A line.", caption="A caption.", artefacts=artefacts)


# ----------------------------------------------------------------- records


def test_png_and_json_hold_the_whole_record(tmp_path):
    draw(tmp_path, [1, 2, 3], artefacts=["s/masks/00"])
    record = json.loads((tmp_path / "03_line.json").read_text())
    assert (
        record["settings"] == {"codebook.margin": 0.5}
        and record["artefacts"] == ["s/masks/00"]
        and record["commit"] == "abc"
    )
    with Image.open(tmp_path / "03_line.png") as im:
        assert (
            json.loads(im.text["cclkit:settings"]) == record["settings"]
            and im.text["cclkit:commit"] == "abc"
        )
        assert (
            im.text["cclkit:data_sha256"] == record["data_sha256"]
            and im.text["Description"] == "A line."
        )


def test_drawing_the_same_again_changes_no_picture_and_keeps_its_commit(tmp_path):
    png = tmp_path / "03_line.png"
    commit = lambda: (
        json.loads((tmp_path / "03_line.json").read_text())["commit"],
        Image.open(png).text["cclkit:commit"],
    )
    draw(tmp_path, [1, 2, 3], commit="abc+changes")
    before = png.read_bytes()
    draw(tmp_path, [1, 2, 3], commit="def+changes")
    assert png.read_bytes() == before and commit() == ("abc+changes",) * 2
    draw(tmp_path, [1, 2, 3], commit="def")  # a clean commit says more
    assert commit() == ("def",) * 2
    draw(tmp_path, [1, 2, 3], commit="012")
    assert commit() == ("def",) * 2
    draw(tmp_path, [1, 2, 4], commit="012")
    assert commit() == ("012",) * 2


def test_areas_count_as_data():
    def digest(top):
        fig, axes = plots(1, 1)
        axes[0, 0].fill_between([0, 1], [0, 0], top)
        return data_digest(fig)

    assert digest([1, 2]) == digest([1, 2]) != digest([1, 3])


def test_changed_settings_are_those_that_differ_from_the_profile():
    assert provenance.changed_settings(config.profile("mini", seed=3)) == {}
    changed = config.profile("mini").with_settings(
        {"codebook.margin": 0.5, "front_end.propagation": "geometric"}
    )
    assert provenance.changed_settings(changed) == {
        "codebook.margin": 0.5,
        "front_end.propagation": "geometric",
    }


def test_artefacts_used_are_the_same_whether_computed_or_reused(plane_scene, tmp_path):
    def used(out):
        run = Run(plane_scene, config.profile("mini"), out)
        run.masks("frame_00001.jpg")
        return run.used

    first = used(tmp_path / "a")
    assert first == used(tmp_path / "a") == used(tmp_path / "b"), (
        "reused, and computed again elsewhere"
    )
    assert [a.split("/")[:2] for a in first] == [["plane", "candidates"], ["plane", "masks"]]
    assert (tmp_path / "a/masks" / first[1].split("/")[2] / "stage.json").is_file()


def git(folder, *args):
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", *args],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout with one notebook, its source and executed copy, and one committed figure and
    table.
    """
    for name in ("notebooks", "cclkit", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "cclkit/a.py").write_text("a = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CCLKIT_RESULTS", raising=False)
    draw(tmp_path / "results/mini/figures", [1, 2, 3], name="line")
    write_notebook(tmp_path)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def write_notebook(root):
    shown = draw(root / "results/mini/figures", [1, 2, 3])
    nb = nbformat.v4.new_notebook()
    injected = nbformat.v4.new_code_cell("seed = 1", metadata={"tags": ["injected-parameters"]})
    empty = nbformat.v4.new_code_cell("from cclkit.notebook.figures import tracking as figures")
    figure = nbformat.v4.new_code_cell("nb.show(figures.line_figure(x), 'line')", id="03-07")
    figure.outputs = [
        nbformat.v4.new_output(
            "execute_result", {"text/html": shown._repr_html_()}, execution_count=3
        )
    ]
    table = nbformat.v4.new_code_cell("nb.table('summary')", id="03-08")
    table.outputs = [
        nbformat.v4.new_output(
            "execute_result",
            {"text/markdown": "| a |"},
            metadata={"text/markdown": {"cclkit_table": "05_summary"}},
            execution_count=4,
        )
    ]
    nb.cells = [injected, empty, figure, table]
    nbformat.write(nb, root / "notebooks/03_x.ipynb")
    (root / "results/mini/notebooks").mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, root / "results/mini/notebooks/03_x.ipynb")


def test_commit_marks_changes_of_code_data_and_the_notebook_itself_only(project):
    head = git(project, "rev-parse", "--short=12", "HEAD")
    assert provenance.commit("03_x") == head
    (project / "results/mini/figures/03_line.json").write_text("{}")
    (project / "notebooks/04_y.ipynb").write_text("")
    assert provenance.commit("03_x") == head and provenance.commit("04_y") == f"{head}+changes"
    (project / "cclkit/new.py").write_text("")
    assert provenance.commit("03_x") == f"{head}+changes"


def test_commit_is_unknown_outside_of_git(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(provenance, "project_folder", lambda: tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit("03_x") == "unknown"


# ----------------------------------------------------------------- manifest and explain


def test_manifest_maps_outputs_to_cells_and_the_paper(project):
    path = provenance.write_manifest("mini")
    outputs = json.loads(path.read_text())["outputs"]
    assert outputs == {
        "figures/03_line": {
            "kind": "figure",
            "notebook": "03_x",
            "cell": 2,
            "cell_id": "03-07",
            "paper": None,
        },
        "tables/05_summary": {
            "kind": "table",
            "notebook": "03_x",
            "cell": 3,
            "cell_id": "03-08",
            "paper": "Table 1",
        },
    }
    (
        project / "results/mini/notebooks/03_x.ipynb"
    ).unlink()  # not executed here: what is known of it stays
    assert json.loads(provenance.write_manifest("mini").read_text())["outputs"] == outputs
    (project / "notebooks/03_x.ipynb").unlink()  # gone from the series: so are its figures
    assert json.loads(provenance.write_manifest("mini").read_text())["outputs"] == {}


def test_explain_says_where_a_figure_comes_from(project, capsys):
    provenance.write_manifest("mini")
    assert cli.main(["figures", "explain", "results/mini/figures/03_line.png"]) == 0
    out = capsys.readouterr().out
    for part in (
        "notebooks/03_x.ipynb, cell [2] (id 03-07)",
        "cclkit.notebook.figures.tracking.line_figure",
        "no counterpart",
        "codebook.margin=0.5",
        "seed 4",
        "commit       abc",
        "cclkit figures --profile mini --only 03",
    ):
        assert part in out, part
    assert "Table 1" in provenance.explain("05_summary", "mini")
    assert cli.main(["figures", "explain", "03_lime"]) == 1
    assert "did you mean 03_line" in capsys.readouterr().err


# ----------------------------------------------------------------- verify


def verify(*args):
    lines = []
    return provenance.verify(
        "mini", *args[:1], strict="strict" in args, report=lines.append
    ), "\n".join(lines)


def test_verify_accepts_what_was_drawn_again(project):
    draw(project / "results/mini/figures", [1, 2, 3])
    assert verify() == (
        0,
        (
            "1 of 1 figures agree with HEAD:results/mini/figures; 1 with the same data hash and the"
            " same drawing"
        ),
    )


def test_verify_has_two_levels(project):
    folder = project / "results/mini/figures"
    draw(folder, [1, 2, 3.001])  # other data, no visible difference
    code, text = verify()
    assert code == 0 and "ok        other data, 0.0 % of the drawing differs" in text
    assert verify("HEAD", "strict")[0] == 1
    draw(folder, [3, 2, 1])
    code, text = verify()
    assert (
        code == 1
        and re.search(r"03_line +DIFFERENT other data, \d", text)
        and "0 of 1 figures agree" in text
    )
    draw(folder, [1, 2, 3])
    with Image.open(folder / "03_line.png") as im:
        texts, wide = im.text, Image.new("RGB", (im.width + 30, im.height), "white")
    info = PngInfo()
    for k, v in texts.items():
        info.add_itxt(k, v)
    wide.save(folder / "03_line.png", pnginfo=info)  # drawn by something else from the same data
    assert verify() == (
        0,
        (
            "03_line                      ok        same data, 100.0 % of the drawing differs\n1 of"
            " 1 figures agree with HEAD:results/mini/figures; 0 with the same data hash and the"
            " same drawing"
        ),
    )
    assert verify("HEAD", "strict")[0] == 1


def test_verify_names_missing_and_mismatched_files(project, tmp_path):
    folder = project / "results/mini/figures"
    draw(folder, [1, 2], name="more")
    code, text = verify()
    assert code == 1 and "only in" in text and "03_more" in text
    (folder / "03_more.png").unlink()
    record = json.loads((folder / "03_line.json").read_text())
    (folder / "03_line.json").write_text(json.dumps({**record, "data_sha256": "0"}))
    assert "were not written together" in verify()[1]
    draw(project / "other", [1, 2, 3])
    draw(folder, [1, 2, 3])
    assert verify("other")[0] == 0  # a folder instead of a commit
    with pytest.raises(NotebookError, match="nowhere.*--against"):
        verify("nowhere")
    with pytest.raises(NotebookError, match="no figures to compare"):
        provenance.verify("paper")


def test_pixels_differ_counts_what_an_eye_sees():
    def png(value, size=(10, 10), at=()):
        image = np.full((*size, 3), 200, np.uint8)
        for y, x in at:
            image[y, x] = value
        import io

        out = io.BytesIO()
        Image.fromarray(image).save(out, "PNG")
        return out.getvalue()

    # of 100 pixels, none white
    assert provenance.pixels_differ(png(0), png(0, at=[(1, 1), (2, 2)])) == 0.02
    assert provenance.pixels_differ(png(0), png(190, at=[(1, 1)])) == 0
    assert (
        provenance.pixels_differ(png(0), png(0, size=(11, 9))) == 0
        and provenance.pixels_differ(png(0), png(0, size=(13, 10))) == 1
    )


# ----------------------------------------------------------------- the committed manifest


def test_committed_manifest_is_complete():
    """Every committed figure and table of the notebooks, each once, in a cell that is still there,
    and every counterpart in the paper.
    """
    manifest = json.loads((ROOT / "results/mini/manifest.json").read_text())["outputs"]
    kept = subprocess.run(
        ["git", "ls-files", "results/mini/figures", "results/mini/tables"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if kept.returncode:
        pytest.skip("not a git checkout")
    files = [Path(f) for f in kept.stdout.split()]
    assert {f"figures/{f.stem}" for f in files if f.suffix == ".png"} == {
        k for k, e in manifest.items() if e["kind"] == "figure"
    }
    assert {
        f"tables/{f.stem}" for f in files if f.suffix == ".csv" and re.match(r"\d\d_", f.name)
    } == {k for k, e in manifest.items() if e["kind"] == "table"}
    for name, entry in manifest.items():
        cells = [
            c
            for c in nbformat.read(ROOT / f"notebooks/{entry['notebook']}.ipynb", 4).cells
            if c.cell_type == "code"
        ]
        assert cells[entry["cell"] - 1].id == entry["cell_id"], name
        assert (
            re.search(rf"""["']{Path(name).name[3:]}["']""", cells[entry["cell"] - 1].source)
            or "for " in cells[entry["cell"] - 1].source
        ), f"{name} is not made in its cell"
    shown = {Path(name).name for name in manifest}
    assert set(provenance.PAPER) <= shown, (
        f"provenance.PAPER names what no notebook shows: {set(provenance.PAPER) - shown}"
    )
    assert {
        Path(name).name: entry["paper"] for name, entry in manifest.items() if entry["paper"]
    } == provenance.PAPER


def test_records_of_the_committed_figures_are_whole():
    paths = sorted((ROOT / "results/mini/figures").glob("*.json"))
    assert paths
    for path in paths:
        record = json.loads(path.read_text())
        for field in (
            "alt",
            "caption",
            "notebook",
            "profile",
            "scene",
            "seed",
            "settings",
            "versions",
            "commit",
            "data_sha256",
            "artefacts",
        ):
            assert field in record, f"{path.name}: no {field}; run `make figures`"
        assert (
            len(record["alt"]) > 30
            and record["caption"]
            and set(record["versions"]) == set(provenance.versions())
        )
        with Image.open(path.with_suffix(".png")) as im:
            assert (
                im.text["cclkit:data_sha256"] == record["data_sha256"]
                and im.text["Description"] == record["alt"]
            )
