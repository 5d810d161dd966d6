"""Every benchmark runs on something small, writes its JSON and table, and refuses nonsense."""

import json

import numpy as np
import pytest
import torch
from conftest import write_plane_scene

from cclkit import config
from cclkit.errors import ArtefactError, ConfigError
from cclkit.method.codebook import ccl_loss
from cclkit.method.masks import mask_nms
from cclkit.places import project_folder
from lab import reference
from lab.bench.__main__ import main
from lab.bench.codebook import WEIGHTS, Codebook
from lab.bench.field import Field, FieldSize
from lab.bench.masks import MaskNms
from lab.bench.modes import Modes, fastest
from lab.bench.query import Query
from lab.bench.rasterising import Rasterize
from lab.bench.registry import BENCHMARKS, summary
from lab.experiments.field_modes import FIELD_ARMS


def bench(path, name, *flags, **options):
    """Run a benchmark from its command line: result, table."""
    pairs = [(f"--{k.replace('_', '-')}", str(v)) for k, v in options.items()]
    argv = [name, *flags, *(text for pair in pairs for text in pair), "--json", str(path)]
    assert main(argv) == 0
    return json.loads(path.read_text()), path.with_suffix(".md").read_text()


# ----------------------------------------------------------------- in general


def test_the_committed_tables_follow_from_the_committed_results():
    folder = project_folder() / "results" / "mini" / "tables"
    assert (folder / "bench.md").read_text() == f"{summary(folder)}\n"
    for name, benchmark in BENCHMARKS.items():
        result = json.loads((folder / f"bench_{name}.json").read_text())
        assert result["benchmark"] == name
        text = (folder / f"bench_{name}.md").read_text()
        assert text == f"{benchmark.describe(result)}\n", name


def test_one_table_of_all_benchmarks_names_a_file_that_is_none(tmp_path):
    """The README's table: a line per measurement, from the files beside it."""
    r, _ = bench(
        tmp_path / "bench_mask_nms.json", "mask_nms", masks=20, width=64, height=48, repeats=1
    )
    table = (tmp_path / "bench.md").read_text()
    assert "filter 20 masks of 64×48" in table
    assert f"{r['times_faster']:.0f} × as fast" in table
    assert len(table.strip().splitlines()) == 5
    (tmp_path / "bench_query.json").write_text('{"benchmark": "query"}')
    message = "bench_query.json: no result of `python -m lab bench query`"
    with pytest.raises(ArtefactError, match=message):
        summary(tmp_path)


@pytest.mark.parametrize(
    ("benchmark", "options", "message"),
    [
        (Rasterize, {"channels": 2}, "channels 2: expected at least 3"),
        (Rasterize, {"sh_degree": 4}, "sh degree 4: expected 0 or 1 or 2 or 3"),
        (MaskNms, {"masks": 0}, "masks 0: expected at least 1"),
        (Codebook, {"masks": 0}, "masks 0: expected at least 1"),
        (Codebook, {"largest": 7}, "largest 7: expected at least 8"),
        (Field, {"batch": 0}, "batch 0: expected at least 1"),
        (FieldSize, {"views": 0}, "views 0: expected at least 1"),
        (FieldSize, {"levels": 3}, "levels 3: expected 1 or 2"),
        (Query, {"units": 0}, "units 0: expected at least 1"),
        (Modes, {"iterations": 0}, "iterations 0: expected at least 1"),
    ],
)
def test_arguments_out_of_range_are_refused(benchmark, options, message):
    with pytest.raises(ConfigError, match=message):
        benchmark(**options)


# ----------------------------------------------------------------- one by one


def test_rasterize(tmp_path, capsys):
    path = tmp_path / "out.json"
    size = dict(gaussians=300, width=64, height=48, channels=5, repeats=1)
    result, table = bench(path, "rasterize", **size)
    assert result["channels"] == 5 and result["tile_intersections"] > 300
    assert "forward_s" in capsys.readouterr().out
    assert result["growing"] == [] and "per intersection" not in table
    result, table = bench(path, "rasterize", "--growing", **size)
    rows = result["growing"]
    touched = [r["tile_intersections"] for r in rows]
    assert [r["gaussians"] for r in rows] == [75, 150, 600, 1200] and touched == sorted(touched)
    # header, rule and one row; header, rule and five
    assert table.count("\n| ") == 3 + 7


def test_mask_nms_times_two_ways_to_the_same_masks(tmp_path):
    result, table = bench(tmp_path / "b.json", "mask_nms", masks=60, width=64, height=48, repeats=1)
    assert 0 < result["kept"] < 60 and result["times_faster"] > 0
    assert f"{result['times_faster']:.0f}" in table
    problem = MaskNms(masks=40, width=64, height=48, seed=1).problem()
    rule = dict(iou_thr=0.8, score_thr=0.7, inner_thr=0.5)
    assert np.array_equal(mask_nms(*problem, **rule), reference.mask_nms(*problem, **rule))


def test_codebook_compares_equal_things(tmp_path, capsys):
    small = dict(masks=64, prototypes=8, dim=16, largest=64, scene_masks=40, steps=3, repeats=1)
    result, table = bench(tmp_path / "b.json", "codebook", **small)
    assert [r["masks"] for r in result["growing"]] == [8, 16, 32, 64]
    assert result["times_faster"] >= 0 and "times_faster" in capsys.readouterr().out
    assert "µs per mask" in table
    prototypes, features, labels = Codebook(prototypes=8, dim=16).problem(50)
    prototypes = prototypes.double()
    features = torch.nn.functional.normalize(features.double(), dim=1)
    fast = ccl_loss(prototypes, features, labels, **WEIGHTS)
    slow = reference.ccl_loss(prototypes, features, labels, **WEIGHTS)
    assert fast.push > 0 and slow.item() == pytest.approx(fast.total.item(), abs=1e-12)


def test_field(tmp_path, capsys):
    path = tmp_path / "out.json"
    size = dict(gaussians=300, width=64, height=48, codes=5, batch=32, top_k=4)
    size |= dict(cached_pixels=200, repeats=1)
    r, table = bench(path, "field", **size)
    assert r["cached_pixels"] == 200 and r["batch"] == 32 and r["codes"] == 5
    assert "steps_ratio" in capsys.readouterr().out
    # what is printed side by side is one measurement: the ratio per pixel is that per step times
    # the pixels
    assert r["rasterised_us_per_pixel"] == pytest.approx(
        1e6 * r["rasterised_step_s"] / (64 * 48), rel=0.1
    )
    assert "| rasterised | 3,072" in table and "| cached     | 32" in table
    r, table = bench(path, "field", "--curves", **size)
    assert [(c["varied"], c[c["varied"]]) for c in r["curves"]] == [
        (n, v)
        for n, vs in (
            ("gaussians", (100, 300, 900)),
            ("batch", (8, 32, 128)),
            ("top_k", (2, 4, 8)),
            ("codes", (1, 5, 20)),
        )
        for v in vs
    ]
    k = [c["mean_truncation"] for c in r["curves"] if c["varied"] == "top_k"]
    assert k[0] > k[1] > k[2] and "| top_k " in table


def test_field_size_extrapolates_from_what_it_measured(tmp_path):
    path = tmp_path / "out.json"
    size = dict(gaussians=300, width=64, height=48, views=3, codes=4, cached_pixels=1200)
    size |= dict(iterations=5, target_iterations=500, batch=32)
    r, table = bench(path, "field_size", **size)
    assert r["levels"] == 2 and len(r["build_s_by_view"]) == 3
    assert 1000 < r["cached_pixels"] <= 1200  # a pixel drawn at both levels is kept once
    assert r["extrapolated_training_min"] == pytest.approx(500 * r["step_s"] / 60, abs=0.06)
    assert "extrapolated from them: 500 iterations and 300 views" in table
    r, table = bench(path, "field_size", levels=1, **size)
    assert r["cached_pixels"] == 1200 and "one level" in table


def test_modes_describes_what_was_measured(tmp_path, monkeypatch):
    real = config.profile
    small = {
        "front_end.masks": "simulated",
        "front_end.features": "simulated",
        "front_end.propagation": "simulated",
        "gaussians.iterations": 10,
        "gaussians.start_gaussians": 1500,
        "gaussians.densify": False,
        "field.iterations": 60,
        "codebook.steps": 60,
        "codebook.n_prototypes": 16,
        "field.hidden": (32,),
    }
    monkeypatch.setattr(config, "profile", lambda name: real(name, **small))
    monkeypatch.setenv("CCLKIT_RESULTS", str(tmp_path / "results"))
    scene = write_plane_scene(tmp_path / "plane")
    result, text = bench(tmp_path / "b.json", "modes", scene=scene, iterations=4)
    assert [r["arm"] for r in result["rows"]] == 2 * list(FIELD_ARMS)
    assert result["to_equal"][0]["arm"] == "frozen, whole views"
    assert text.count("frozen, cached, K = 16") >= 3 and "Time to equal mIoU" in text


def test_the_fastest_mode_is_one_that_reached_the_aim():
    rows = [
        {"reached": True, "seconds": 8.0},
        {"arm": "a", "reached": False, "seconds": 0.5, "times_faster": 16.0},
        {"arm": "b", "reached": True, "seconds": 2.0, "times_faster": 4.0},
    ]
    assert fastest(rows) == "2.0 s against 8.0 s, 4.0 × less (b)"
    assert fastest(rows[:2]) == "not reached"


def test_propagation(tmp_path):
    result, table = bench(
        tmp_path / "p.json", "propagation", objects=2, views=2, width=64, height=48
    )
    assert result["peak_memory_mb"] >= result["peak_before_mb"] > 0 and result["seconds"] > 0
    assert "ms per object and view" in table


def test_query(tmp_path, capsys):
    size = dict(width=96, height=70, gaussians=300, codes=9, units=12, repeats=1)
    result, table = bench(tmp_path / "b.json", "query", **size)
    assert result["units"] == 12 and result["times_faster"] > 1
    assert min(result[k] for k in ("decode_per_level_s", "query_s", "units_v2_s")) > 0
    assert "| 12 units, langsplat " in table and "literal_loops_s" in capsys.readouterr().out
    prototypes, maps, texts, canonical = Query(width=40, height=33, codes=5, units=10).problem()
    assert prototypes.shape == (5, 512) and maps.shape == (1, 2, 33, 40)
    assert set(np.unique(maps)) <= set(range(5))
    assert len(texts) == 10 and len(canonical) == 4
    assert torch.allclose(texts.norm(dim=1), torch.ones(10))
