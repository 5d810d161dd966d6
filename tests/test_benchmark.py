"""What the benchmark concludes from its rows; that it measures them is tested with the pipeline."""

import math

import pytest

from cclkit.errors import EvaluationError
from cclkit.notebook.measured import Row, contrasts, read_rows, save_contrasts


def rows(arms, *, front_end="own", measured="index maps"):
    """Arms -> scenes -> seeds of mIoU."""
    return [
        Row(f"scene {s}", front_end, f"{front_end} label", measured, arm, n, v, "")
        for arm, scenes in arms.items()
        for s, seeds in enumerate(scenes)
        for n, v in enumerate(seeds)
    ]


SEVEN = {
    "baseline": [[40.0, 42.0]] * 7,
    "pull": [[41.0, 43.0]] * 7,
    "push": [[40.0 + d, 42.0 + d] for d in (1, -1, 1, -1, 1, -1, 0.0)],
    "both": [[42.0 + s, 44.0 + s] for s in range(7)],
    "shuffled": [[40.0, 44.0]] * 7,
}


def test_the_plan_on_seven_scenes_by_hand():
    found = {c.arms: c for c in contrasts(rows(SEVEN))}
    assert [c.role for c in found.values()] == [
        "primary",
        "secondary",
        "secondary",
        "secondary",
        "reported",
    ]
    primary = found["both", "baseline"]
    assert (
        primary.mean == pytest.approx(5.0)
        and primary.p == primary.p_holm == 2 / 128
        and primary.scenes == 7
    )
    # scenes 2 … 8: the standard error is 0.76
    assert 3.0 < primary.low < 4.2 and 5.8 < primary.high < 7.0
    pull, push, control = (
        found["pull", "baseline"],
        found["push", "baseline"],
        found["both", "shuffled"],
    )
    assert (pull.mean, pull.low, pull.high) == (1.0, 1.0, 1.0) and pull.p == 2 / 128
    assert push.mean == pytest.approx(0.0) and push.p == 1.0 and push.low < 0 < push.high
    assert control.p == 2 / 128 and (pull.p_holm, control.p_holm, push.p_holm) == pytest.approx(
        (6 / 128, 6 / 128, 1.0)
    )
    assert (
        math.isnan(found["shuffled", "baseline"].p)
        and found["shuffled", "baseline"].low < 1 < found["shuffled", "baseline"].high
    )


def test_pairs_are_of_one_scene_and_seed():
    """Scenes differ by far more than arms; pairing removes that, and a run that is missing leaves
    its partner out.
    """
    data = rows({"baseline": [[10.0, 12.0], [60.0], [90.0]], "both": [[11.0, 13.0], [61.0, 99.0]]})
    (c,) = contrasts(data)
    assert (c.mean, c.low, c.high, c.scenes) == (1.0, 1.0, 1.0, 2)


def test_other_settings_get_intervals_and_no_test(tmp_path):
    data = (
        rows(SEVEN)
        + rows(SEVEN, front_end="simulated")
        + rows({k: SEVEN[k] for k in ("baseline", "both")}, measured="field")
    )
    assert all(math.isnan(c.p) and math.isfinite(c.low) for c in contrasts(data, "simulated"))
    assert [c.arms for c in contrasts(data, "own", "field")] == [("both", "baseline")]
    table = save_contrasts(data, tmp_path)
    assert (
        len(table.splitlines()) == 2 + 5 + 5 + 1
        and "+5.0" in table
        and "0.016" in table
        and (tmp_path / "benchmark_contrasts.csv").exists()
    )
    assert contrasts([]) == [] and all(
        math.isnan(c.low) for c in contrasts(rows({k: v[:1] for k, v in SEVEN.items()}))
    )


def test_a_file_of_something_else_is_named(tmp_path):
    path = tmp_path / "benchmark_rows.csv"
    for text in (
        "a,b\n1,2\n",
        "scene,front_end,label,measured,arm,seed,miou,key\ns,own,l,field,both,0,much,k\n",
    ):
        path.write_text(text)
        with pytest.raises(
            EvaluationError, match="benchmark_rows.csv.*run `python -m lab benchmark` again"
        ):
            read_rows(path)
