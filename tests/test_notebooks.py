"""Lint of the committed notebooks, and the runner that executes them."""

import ast
import json
import re
import types
from pathlib import Path

import nbformat
import pytest

from cclkit.errors import ConfigError, NotebookError, SceneError
from cclkit.notebook import colours as colors, execute as notebooks
from cclkit.notebook.figures import common, field, scenes, tracking
from cclkit.notebook.show import FigureFolder, data_digest
from cclkit.notebook.start import Notebook, start
from cclkit.runs import keys
from cclkit.runs.run import Run
from lab.site.nbval_guard import LEAST, comparable

ROOT = Path(__file__).parent.parent
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = [p.stem for p in PATHS]


def test_the_series_is_complete():
    assert NAMES == [
        "00_start_here",
        "01_mask_extraction",
        "02_tracking",
        "03_ccl_training",
        "04_field_training",
        "05_lerf_evaluation",
        "06_3dovs_evaluation",
        "07_ablations",
        "08_playground",
        "90_small_models",
    ]


@pytest.fixture(params=PATHS, ids=NAMES)
def notebook(request):
    return request.param, nbformat.read(request.param, 4)


def code_cells(nb):
    return [c for c in nb.cells if c.cell_type == "code"]


def test_is_valid_small_and_executed_in_order(notebook):
    path, nb = notebook
    nbformat.validate(nb)
    assert path.stat().st_size <= 1_500_000
    assert nb.metadata.kernelspec.name == "python3"
    assert [c.execution_count for c in code_cells(nb)] == list(range(1, len(code_cells(nb)) + 1))
    assert not any(o.output_type == "error" for c in code_cells(nb) for o in c.outputs)
    assert not any(
        o.output_type == "stream" and o.name == "stderr" for c in code_cells(nb) for o in c.outputs
    )


def test_what_cells_ask_of_runs_and_modules_is_there(notebook):
    """``run.x``, ``nb.x`` and names of imported modules, which only an execution would miss."""
    path, nb = notebook
    source = "\n".join(c.source for c in code_cells(nb))
    space: dict = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            exec(ast.unparse(node), space)
    known = {"run": set(dir(Run)), "nb": set(dir(Notebook)) | set(Notebook.__annotations__)}
    known |= {n: set(dir(v)) for n, v in space.items() if isinstance(v, types.ModuleType)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = node.value.id
            assert node.attr in known.get(name, {node.attr}), f"{path.name}: {name}.{node.attr}"


def test_has_exactly_one_parameters_cell_of_plain_annotated_values(notebook):
    _, nb = notebook
    cells = [c for c in code_cells(nb) if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1
    for statement in ast.parse(cells[0].source).body:
        assert isinstance(statement, ast.AnnAssign) and isinstance(statement.value, ast.Constant), (
            ast.unparse(statement)
        )
    assert all("#" in line for line in cells[0].source.splitlines()), (
        "every parameter needs its meaning behind a #"
    )


def test_reads_like_a_chapter(notebook):
    path, nb = notebook
    text = "\n".join(c.source for c in nb.cells if c.cell_type == "markdown")
    headings = re.findall(r"^(#+) ", re.sub(r"```.*?```", "", text, flags=re.S), flags=re.M)
    assert headings.count("#") == 1 and headings[0] == "#"
    assert all(len(b) - len(a) <= 1 for a, b in zip(headings, headings[1:])), (
        "a heading level is skipped"
    )
    first = nb.cells[0].source
    for word in ("**Objectives.**", "**Prerequisites.**", "**Run time.**"):
        assert word in first, word
    assert "## Summary" in text and "What the paper says and what we chose" in text
    assert path.stem == NAMES[-1] or "**Next:**" in text
    for link in re.findall(r"\]\(([^)#]+\.ipynb)\)", text):
        assert (path.parent / link).exists(), link


def test_asks_for_predictions_and_answers_them(notebook):
    """A prediction stands right before the cell that answers it; something is broken on purpose,
    after a prediction, and there is an exercise.
    """
    path, nb = notebook
    asked = [
        (i, c.source)
        for i, c in enumerate(nb.cells)
        if c.cell_type == "markdown" and "**Predict, then " in c.source
    ]
    assert asked
    for i, text in asked:
        assert nb.cells[i + 1].cell_type == "code", text[-80:]
        assert text.rstrip().split("\n\n")[-1].startswith("> **Predict, then "), (
            f"something stands between a prediction and its answer: {text[-80:]}"
        )
    assert any(re.search(r"^#+ Break it", text, flags=re.M) for _, text in asked)
    assert any("exercise" in c.metadata.get("tags", []) for c in code_cells(nb))


def test_contains_nothing_that_breaks_elsewhere(notebook):
    _, nb = notebook
    source = "\n".join(c.source for c in code_cells(nb))
    assert not re.search(r"^\s*[%!]", source, flags=re.M), "no magics, no shell"
    assert ".cuda()" not in source and "pip install" not in source
    for cell in nb.cells:  # papermill knows the one tag, nbval the other
        tags = set(cell.metadata.get("tags", []))
        assert ("skip-execution" in tags) == ("nbval-skip" in tags), (
            f"paired skip tags, found {tags}"
        )
        assert (
            not tags & {"raises-exception", "nbval-raises-exception", "nbval-ignore-output"}
            and "NBVAL_" not in cell.source
        )
    everything = json.dumps(nb)
    assert not re.search(r'["\s(]/(home|root|Users|work|tmp)/', everything)


def test_every_figure_has_alt_text_and_caption_and_is_saved(notebook):
    path, nb = notebook
    shown = 0
    for cell in code_cells(nb):
        for output in cell.outputs:
            data = output.get("data", {})
            assert "image/png" not in data and "image/jpeg" not in data, (
                "show figures with nb.show, so that alt text survives"
            )
            for img in re.findall(r"<img [^>]*>", data.get("text/html", "")):
                alt = re.search(r'alt="([^"]*)"', img)
                assert re.search(rf'<figure id="{path.stem[:2]}_', data["text/html"]), (
                    "shown by an older version; run `make figures`"
                )
                assert alt and len(alt.group(1)) > 30, img[:120]
                assert "<figcaption>" in data["text/html"]
                shown += 1
    assert shown >= 1
    saved = list((ROOT / "results/mini/figures").glob(f"{path.stem[:2]}_*.png"))
    assert len(saved) == shown, (
        f"{shown} figures in the notebook, {len(saved)} in results/mini/figures"
    )


def test_something_can_be_compared(notebook):
    """A notebook without outputs that nbval compares would pass any comparison."""
    _, nb = notebook
    outputs = [o for c in code_cells(nb) for o in c.outputs]
    assert (
        sum(
            comparable(
                o,
                (
                    "metadata",
                    "traceback",
                    "text/latex",
                    "output_type",
                    "name",
                    "execution_count",
                    "image/png",
                    "image/jpeg",
                ),
            )
            for o in outputs
        )
        >= LEAST
    )


# ----------------------------------------------------------------- start()


def test_start_names_what_is_wrong(monkeypatch, tmp_path):
    monkeypatch.setenv("CCLKIT_RESULTS", str(tmp_path))
    with pytest.raises(ConfigError, match="use 'mini' or 'paper'"):
        start("01_x", profile="maxi")
    with pytest.raises(SceneError, match="nowhere"):
        start("01_x", scene="nowhere")
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="needs a CUDA device"):
            start("01_x", profile="paper")


# ----------------------------------------------------------------- the runner, on notebooks of its
# own


def write(folder, name, *sources):
    nb = nbformat.v4.new_notebook()
    nb.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    parameters = nbformat.v4.new_code_cell('profile: str = "mini"  # profile')
    parameters.metadata["tags"] = ["parameters"]
    nb.cells = [parameters, *(nbformat.v4.new_code_cell(s) for s in sources)]
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, folder / name)


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "data").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CCLKIT_RESULTS", raising=False)
    return tmp_path


def test_runner_executes_keeps_and_reports(project, capsys):
    write(project / "notebooks", "00_good.ipynb", "print('profile', profile)")
    write(project / "notebooks", "01_bad.ipynb", "x = 1", "raise ValueError('no such spoon')")
    assert notebooks.run_notebooks("mini") == 1
    out = capsys.readouterr()
    assert "00_good" in out.out and "1 of 2 notebooks" in out.out
    assert "01_bad.ipynb" in out.err and "cell 3 raised ValueError: no such spoon" in out.err
    executed = project / "results/mini/notebooks/00_good.ipynb"
    assert (
        "profile mini" in executed.read_text()
        and not (project / "results/mini/notebooks/01_bad.ipynb").exists()
    )
    before = executed.stat().st_mtime_ns
    write(project / "notebooks", "01_bad.ipynb", "x = 1")
    assert notebooks.run_notebooks("mini") == 0
    assert executed.stat().st_mtime_ns == before and "unchanged" in capsys.readouterr().out
    # an edited notebook is run again
    write(project / "notebooks", "00_good.ipynb", "print('other', profile)")
    assert notebooks.run_notebooks("mini", only=["0"]) == 0 and "other mini" in executed.read_text()
    assert (
        notebooks.run_notebooks("mini", fresh=True) == 0 and executed.stat().st_mtime_ns != before
    )


def test_a_notebook_is_run_again_when_what_it_reads_was_measured_again(project):
    for name in ("07_reads.ipynb", "06_does_not.ipynb"):
        write(project / "notebooks", name, "1")
    root = project / "results/mini"
    keys = lambda: [
        notebooks._sources_key(p, "mini", {}, root)
        for p in sorted((project / "notebooks").glob("*.ipynb"))
    ]
    before = keys()
    (root / "sweeps").mkdir(parents=True)
    (root / "sweeps" / "margin.csv").write_text("miou,key\n")
    other, reads = keys()
    assert other == before[0] and reads != before[1]
    (root / "sweeps" / "margin.csv").write_text("miou,key\n50,k\n")
    assert keys()[1] not in (reads, before[1])


@pytest.fixture(scope="module")
def code_of():
    """Number of a notebook -> files of code in its key."""
    read, found = [], {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "_digest_once", lambda f: read.append(f) or "")
        for path in PATHS:
            read.clear()
            notebooks._sources_key(path, "mini", {}, ROOT / "results/mini")
            found[path.stem[:2]] = set(read)
    return found


@pytest.mark.parametrize(
    "modules, redrawn",
    [
        ("figures/scenes.py", "00"),
        ("figures/masks.py", "01"),
        ("figures/tracking.py", "02"),
        ("figures/codebook.py", "03"),
        ("figures/field.py", "04"),
        ("figures/lerf.py", "05"),
        ("figures/ovs3d.py", "06"),
        ("figures/ablations.py measured.py", "07"),
        ("figures/playground.py widgets.py", "08"),
        ("figures/small_models.py", "90"),
        ("figures/common.py show.py", "00 01 02 03 04 05 06 07 08 90"),
        ("execute.py", ""),
    ],
)
def test_editing_a_figure_executes_the_notebooks_that_draw_it_and_no_other(
    code_of, modules, redrawn
):
    for name in modules.split():
        edited = keys.PACKAGE / "notebook" / name
        assert edited.is_file()
        assert [n for n, files in code_of.items() if edited in files] == redrawn.split(), name


def test_every_figure_is_drawn_by_a_notebook_and_nothing_of_the_laboratory_counts(code_of):
    every = set().union(*code_of.values())
    drawn = {f for f in every if f.parent == keys.PACKAGE / "notebook/figures"}
    assert drawn == set((keys.PACKAGE / "notebook/figures").glob("*.py"))
    assert all(f.is_relative_to(keys.PACKAGE) for f in every)


def test_an_edit_of_code_that_a_notebook_reads_changes_its_key(monkeypatch):
    (path,) = (p for p in PATHS if p.stem.startswith("02"))
    key = lambda: notebooks._sources_key(path, "mini", {}, ROOT / "results/mini")
    before, edited = key(), keys.PACKAGE / "notebook/figures/tracking.py"
    digest = keys._digest_once
    monkeypatch.setattr(keys, "_digest_once", lambda f: "edited" if f == edited else digest(f))
    assert key() != before
    edited = keys.PACKAGE / "notebook/figures/masks.py"
    assert key() == before


def test_public_data_are_not_hashed_for_a_notebook(project):
    write(project / "notebooks", "00_good.ipynb", "1")
    path, root = project / "notebooks/00_good.ipynb", project / "results/mini"

    def key():
        notebooks._bundled_data.cache_clear()
        return notebooks._sources_key(path, "mini", {}, root)

    before = key()
    public = project / "data/public"
    public.mkdir()
    (public / "missing").symlink_to(project / "nowhere")  # reading it would fail
    (public / "scene.bin").write_bytes(b"1")
    assert key() == before
    (project / "data/ledger.toml").write_text("no notebook reads this")
    assert key() == before
    (project / "data/sweeps").mkdir(exist_ok=True)
    (project / "data/sweeps/sweep.toml").write_text("title = 'bundled'")
    assert key() != before


def test_runner_refuses_unknown_parameters_notebooks_and_profiles(project):
    write(project / "notebooks", "00_good.ipynb", "1")
    with pytest.raises(NotebookError, match="no parameter 'sede'.*profile"):
        notebooks.run_notebooks("mini", parameters={"sede": 1})
    with pytest.raises(NotebookError, match="no notebook with number '7'"):
        notebooks.run_notebooks("mini", only=["7"])
    with pytest.raises(ConfigError, match="unknown profile"):
        notebooks.run_notebooks("maxi", fresh=True)
    (project / "notebooks/00_good.ipynb").unlink()
    with pytest.raises(NotebookError, match="no notebooks found"):
        notebooks.run_notebooks("mini")


def test_measured_times_reach_the_first_cell_and_the_readme(project):
    write(project / "notebooks", "00_good.ipynb", "print(profile)")
    path = project / "notebooks/00_good.ipynb"
    nb = nbformat.read(path, 4)
    nb.cells.insert(
        0,
        nbformat.v4.new_markdown_cell(
            "# Good\n\n**Objectives.** Do this; do that.\n\n**Run time.** About a year.\n\nText."
        ),
    )
    nbformat.write(nb, path)
    (project / "README.md").write_text(
        "<!-- table: results/mini/tables/notebooks.md -->\n<!-- end -->\n"
    )
    assert notebooks.run_notebooks("mini", fresh=True, write_back=True) == 0
    seconds = json.loads((project / "results/mini/notebooks/times.json").read_text())["00_good"][
        "fresh"
    ]
    first = nbformat.read(path, 4).cells[0].source
    assert re.fullmatch(
        rf"# Good\n\n.*\n\n\*\*Run time\.\*\* {notebooks.in_words(seconds)} from the photographs"
        r" \(measured on \d+ CPU cores?\)\.\n\nText\.",
        first,
    ), first
    assert (
        f"| [00 Good](notebooks/00_good.ipynb) | Do this     | {notebooks.in_words(seconds)}"
        in (project / "README.md").read_text()
    )
    executed = project / "results/mini/notebooks/00_good.ipynb"
    before = executed.stat().st_mtime_ns
    assert notebooks.run_notebooks("mini") == 0 and executed.stat().st_mtime_ns == before, (
        "another measured time is no other notebook"
    )
    assert notebooks.is_current(path, "mini")
    write(project / "notebooks", "00_good.ipynb", "print(0)")
    assert not notebooks.is_current(path, "mini")
    with pytest.raises(NotebookError, match="# title"):
        notebooks.title(path)


def test_times_are_as_coarse_as_they_repeat():
    assert [notebooks.in_words(s) for s in (0.3, 12, 44, 57, 58, 95, 150, 610)] == [
        "5 s",
        "10 s",
        "45 s",
        "55 s",
        "1 min",
        "2 min",
        "2 min",
        "10 min",
    ]


# ----------------------------------------------------------------- figures


def frames_of(n=5) -> dict[str, list]:
    import numpy as np

    rng = np.random.default_rng(0)
    return {name: list(rng.random((n, 18, 24, 3))) for name in ("colour", "codes")}


def folder_of(tmp_path):
    return FigureFolder(tmp_path, notebook="04_x", profile="mini", footer="f", about={"seed": 0})


def test_an_animation_is_saved_with_all_its_frames(tmp_path):
    from PIL import Image

    frames = frames_of()["codes"]
    shown = folder_of(tmp_path).show_animation(
        frames, "orbit", alt="a camera that moves past the scene", caption="An orbit."
    )
    with Image.open(tmp_path / "04_orbit.png") as saved:
        assert (
            saved.n_frames == 5
            and saved.size == (24, 18)
            and saved.text["cclkit:caption"] == "An orbit."
        )
    page = shown._repr_html_()
    assert (
        'alt="a camera that moves past the scene"' in page and "<figcaption><em>An orbit." in page
    )
    assert json.loads((tmp_path / "04_orbit.json").read_text())["figure"] == "04_orbit"


def test_the_viewer_works_offline_and_keeps_a_static_twin(tmp_path):
    shown = folder_of(tmp_path).show_viewer(
        frames_of(),
        "viewer",
        alt='the scene in two layers, "colour" and codes',
        caption="Look around.",
    )
    page = shown._repr_html_()
    # nothing is fetched
    assert page == shown._repr_html_() and not re.search(
        r"https?:|src=\"(?!data:)|<link|@import", page
    )
    assert (
        page.count("<img ") == 1
        and "&quot;colour&quot;" in page
        and "<figcaption><em>Look around." in page
    )
    assert page.count("data:image/webp") == 2 and re.search(r"size = \[24, 18, 5\]", page)
    assert (tmp_path / "04_viewer.png").exists() and page in (
        tmp_path / "04_viewer.html"
    ).read_text()
    with pytest.raises(ConfigError, match="same number"):
        folder_of(tmp_path).show_viewer(
            {"a": frames_of()["codes"], "b": []}, "viewer", alt="", caption=""
        )


def test_cameras_along_a_path_start_and_end_with_it():
    import numpy as np

    from cclkit.scenes.scene import Camera

    def at(x: float) -> Camera:
        pose = np.eye(4)
        pose[0, 3] = -x
        return Camera(np.array([[50.0, 0, 20], [0, 50, 15], [0, 0, 1]]), pose, 40, 30)

    path = field.path_cameras([at(0), at(1), at(1), at(4)], 9, width=20)
    assert np.allclose([c.centre[0] for c in path], np.linspace(0, 4, 9)) and all(
        (c.width, c.height) == (20, 15) for c in path
    )


def test_saved_figures_carry_their_provenance(tmp_path):
    from PIL import Image

    folder = FigureFolder(
        tmp_path, notebook="03_x", profile="mini", footer="footer text", about={"seed": 4}
    )
    fig, axes = common.plots(1, 1)
    axes[0, 0].plot([1, 2, 3])
    shown = folder.show(fig, "line", alt='A "rising" line.', caption="Caption & more.")
    with Image.open(tmp_path / "03_line.png") as im:
        assert (
            im.text["Description"] == 'A "rising" line.'
            and im.text["cclkit:profile"] == "mini"
            and im.text["cclkit:seed"] == "4"
        )
    record = json.loads((tmp_path / "03_line.json").read_text())
    html = shown._repr_html_()
    assert (
        'alt="A &quot;rising&quot; line."' in html
        and "<figcaption><em>Caption &amp; more.</em></figcaption>" in html
    )

    def digest(values):
        fig, axes = common.plots(1, 1)
        axes[0, 0].plot(values)
        return data_digest(fig)

    assert record["data_sha256"] == digest([1, 2, 3]) != digest([1, 2, 4])


def test_one_basis_gives_equal_vectors_equal_colours():
    import numpy as np

    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(50, 8))
    basis = common.ColorBasis(vectors)
    assert (
        np.array_equal(basis(vectors[:5]), basis(vectors)[:5])
        and basis(vectors).min() >= 0
        and basis(vectors).max() <= 1
    )
    label = np.array([[0, -1], [2, 2]])
    painted = common.map_of(label, basis(vectors[:3]))
    assert np.array_equal(painted[1, 0], painted[1, 1]) and np.allclose(
        painted[0, 1], colors.UNLABELLED
    )


@pytest.mark.parametrize("vision", colors.VISIONS)
def test_colours_are_told_apart_with_any_colour_vision(vision):
    """Distances in CIELAB; 2.3 is just noticeable side by side, what stands apart in a picture
    needs several times that.
    """
    import matplotlib.colors
    import numpy as np

    def nearest(rgb):
        lab = colors.seen(np.array([matplotlib.colors.to_rgb(c) for c in rgb]), vision)
        return (np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1e9 * np.eye(len(lab))).min()

    assert nearest(common.ARM_COLORS.values()) > 15
    assert (
        nearest(
            [
                colors.BLUE,
                colors.ORANGE,
                colors.GREEN,
                colors.VERMILION,
                colors.PURPLE,
                colors.SKY,
                colors.YELLOW,
            ]
        )
        > 15
    )
    for n, least in ((8, 20), (20, 12), (60, 5)):
        assert nearest(colors.label_colors(n)) > least, n
    assert nearest([*colors.label_colors(60), colors.UNLABELLED]) > 5, (
        "none must not look like a label"
    )


def test_label_colours_do_not_depend_on_their_number():
    import numpy as np

    assert np.array_equal(colors.label_colors(7), colors.label_colors(30)[:7])
    assert colors.label_colors(0).shape == (0, 3) and colors.label_colors(500).shape == (500, 3)


def test_an_object_has_one_colour_in_every_figure():
    import numpy as np

    from cclkit.scenes.load import load_scene

    scene = load_scene("tea_party")
    truth, view, own = scene.ground_truth, scene.training_views[0], colors.region_colors(scene)
    wholes = [i for i in sorted(truth.names) if i not in truth.parents]
    assert np.array_equal([own[i] for i in wholes], colors.label_colors(len(wholes))), (
        "whole objects have the colours that are farthest apart"
    )
    ids = truth.ids(view, "whole")
    bear, other = (
        next(i for i in wholes if truth.names[i] == name) for name in ("stuffed bear", "teapot")
    )
    inside = np.argwhere(ids == bear).mean(0).round().astype(int)
    assert np.allclose(scenes.paint_regions(scene, ids)[tuple(inside)], own[bear])
    half = ids == bear
    half[: inside[0]] = False
    colors_of = colors.track_colors(
        scene, [(view, half), (view, ids == other), (view, ids == bear)], "wp"
    )
    assert np.array_equal(colors_of[1], own[other]) and np.array_equal(colors_of[2], own[bear])
    assert not (colors_of[0] == np.array(list(own.values()))).all(1).any(), (
        "two tracks of one object are told apart, and the better one has its colour"
    )
    assert colors.track_colors(scene, [], "wp").shape == (0, 3)
    label = np.array([[1, 2, 3, 0, -1]])  # and the figures use what they are given
    fig = tracking.tracks_figure([view], {"wp": [label]}, {"wp": colors_of})
    shown = fig.axes[1].images[0].get_array()
    assert np.allclose(shown[0, 0], colors_of[0])
    bench = load_scene("breakfast_bench")
    of = {
        name: colors.region_colors(bench)[i]
        for i, name in bench.ground_truth.names.items()
        if i not in bench.ground_truth.parents
    }
    assert all(
        np.array_equal(c, of[name]) for name, c in zip(bench.classes, colors.class_colors(bench))
    )


def test_a_figure_that_is_not_of_the_scene_names_none(tmp_path):
    from types import SimpleNamespace

    from PIL import Image

    from cclkit import config

    run = SimpleNamespace(config=config.profile("mini", seed=3), used=[])
    nb = Notebook(
        "07_x",
        run,
        FigureFolder(
            tmp_path,
            notebook="07_x",
            profile="mini",
            footer="tea_party",
            about={"scene": "tea_party", "front_end": "mini-SAM", "seed": 3},
        ),
        tmp_path,
    )
    footers = []
    for of in ("", "features without images"):
        fig, axes = common.plots(1, 1)
        nb.show(fig, "gains", alt="a line", caption="c", of=of)
        footers.append(fig.texts[-1].get_text())
        assert Image.open(tmp_path / "07_gains.png").info["cclkit:scene"] == (of or "tea_party")
    assert (
        footers[0] == "tea_party"
        and "features without images · seed 3" in footers[1]
        and "tea_party" not in footers[1]
    )


def test_the_table_of_symbols_names_what_the_code_has():
    nb = nbformat.read(ROOT / "notebooks/00_start_here.ipynb", 4)
    rows = [
        line
        for c in nb.cells
        if "## Symbols and names" in c.source
        for line in c.source.splitlines()
        if line.startswith(("| $", "| sp"))
    ]
    code = "\n".join(p.read_text() for p in (ROOT / "cclkit").rglob("*.py"))
    names = {
        part
        for row in rows
        for quoted in re.findall(r"`([^`]+)`", row.rpartition(" | ")[2])
        for part in re.findall(r"[A-Za-z_]\w+", quoted)
    } - {"d"}
    assert len(rows) >= 20 and len(names) >= 25
    assert not {n for n in names if not re.search(rf"\b{n}\b", code)}
    for symbol in (
        "M_i",
        "F_i",
        "T_j",
        "y_i",
        "K",
        "N",
        "d_f",
        "lambda_{pull}",
        "lambda_{push}",
        "m",
        "tau",
        "D",
        "L_{max}",
    ):
        assert any(symbol in row.split(" | ")[0] for row in rows), symbol


def test_simulated_visions_keep_grey_and_confuse_what_they_must():
    import numpy as np

    grey = np.array([0.5, 0.5, 0.5])
    for vision in colors.VISIONS:
        assert np.allclose(colors.seen(grey, vision), colors.seen(grey, "normal"), atol=0.5)
    red, green = np.array([[0.75, 0.25, 0.1], [0.45, 0.45, 0.1]])
    apart = {v: np.linalg.norm(colors.seen(red, v) - colors.seen(green, v)) for v in colors.VISIONS}
    assert (
        apart["deuteranopia"] < 0.5 * apart["normal"]
        and apart["tritanopia"] > 0.6 * apart["normal"]
    )
