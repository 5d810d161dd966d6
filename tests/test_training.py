"""Training of the small models, on scenes drawn with numpy: resumable, repeatable, learning what it
should.
"""

import json
import os

import numpy as np
import pytest
import torch

from cclkit.errors import ModelError, SceneError
from cclkit.foundation import sam as sam_model, weights
from cclkit.foundation.mini_clip import WordTokenizer
from cclkit.foundation.sam2 import load_sam2
from lab.tabletop.random_scenes import CATALOGUE_SEEDS
from lab.training import clip, data, loop, muon, replicas, sam, sam2, score


@pytest.fixture(scope="module")
def scenes():
    """Two scenes of two views: a red square with a dark dot on it, and a blue disc, on grey."""
    rng = np.random.default_rng(0)
    images, ids = np.full((4, 64, 96, 3), 120, np.uint8), np.zeros((4, 3, 64, 96), np.uint16)
    y, x = np.mgrid[:64, :96]
    for v in range(4):
        cx, cy = rng.integers(20, 30), rng.integers(22, 40)
        square = (abs(x - cx) < 14) & (abs(y - cy) < 14)
        dot = (x - cx) ** 2 + (y - cy) ** 2 < 36
        disc = (x - 70) ** 2 + (y - cy) ** 2 < 200
        for mask, color, at in (
            (~square & ~disc, (120, 120, 120), (4, 4, 4)),
            (square, (200, 30, 30), (1, 1, 1)),
            (dot, (40, 0, 0), (2, 1, 1)),
            (disc, (20, 40, 200), (3, 3, 3)),
        ):
            images[v][mask] = color
            for level, i in enumerate(at):
                ids[v, level][mask] = i
    node = lambda level, text, stuff=False: {
        "texts": [text, f"shiny {text}"],
        "family": text.split()[-1],
        "level": level,
        "stuff": stuff,
        "parent": 0,
        "colour": "",
    }
    nodes = {
        1: node("whole", "red box"),
        2: node("subpart", "box dot"),
        3: node("whole", "blue ball"),
        4: node("whole", "grey table", True),
    }
    return data.Scenes(
        images, ids, np.array([0, 0, 1, 1]), [nodes, nodes], [frozenset({1, 2, 3})] * 4
    )


def test_a_stopped_training_goes_on_to_the_same_weights(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(sam, "CLICKS", 3)
    monkeypatch.setattr(loop, "SAVE_EVERY", 2)

    def train(folder, stop_at=None):
        model = sam.model(0)
        losses = sam.Losses(model, scenes)

        def loss_of(step, rng):
            if step == stop_at:
                raise KeyboardInterrupt
            return losses(step, rng)

        return loop.fit(
            model,
            loss_of,
            folder,
            steps=4,
            seed=0,
            lr=1e-3,
            warmup=2,
            matrices=sam.matrices(model),
            log=lambda line: None,
        )

    whole, curves = train(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b", stop_at=3)
    resumed, again = train(tmp_path / "b")
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values()):
        assert torch.equal(a, b), name
    assert (
        curves["dice"] == again["dice"]
        and len(curves["dice"]) == 4
        and curves["score"] == again["score"]
        and curves["name"] == again["name"]
    )
    with pytest.raises(ModelError, match="asked for 5 steps"):
        loop.fit(sam.model(0), None, tmp_path / "a", steps=5, seed=0, lr=1e-3)
    with pytest.raises(ModelError, match="code and data other"):
        loop.fit(sam.model(0), None, tmp_path / "a", steps=4, seed=0, lr=1e-3, made_from="other")
    (tmp_path / "a" / "state.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="delete it to start over"):
        train(tmp_path / "a")


def _regression(folder, steps, made_from):  # at module level, so that a spawned replica finds it
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.Conv2d(8, 4, 3),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 2),
    )

    def loss_of(step, rng):
        x = torch.from_numpy(rng.normal(size=(2, 3, 6, 6))).float()
        return {"total": (model(x) - x.mean((2, 3))[:, :2]).square().mean()}

    return loop.fit(
        model,
        loss_of,
        folder,
        steps=steps,
        seed=0,
        lr=1e-2,
        warmup=1,
        matrices=[model[0].weight, model[1].weight],
        made_from=made_from,
        log=lambda line: None,
    )


def test_replicas_take_the_mean_of_their_gradients_and_stay_alike(tmp_path, monkeypatch):
    """Two replicas end where one process ends that sees both replicas' data in every step; run
    again, in the same bits.
    """
    for name in ("a", "b"):
        replicas.in_replicas(2, _regression, tmp_path / name, 6, "x")
    (shared, curves), (again, _) = (_regression(tmp_path / name, 6, "x") for name in ("a", "b"))
    assert (
        all(
            torch.equal(a, b)
            for a, b in zip(shared.state_dict().values(), again.state_dict().values())
        )
        and len(curves["total"]) == 6
    )

    def both(step, rng):
        model = both.model
        x = torch.from_numpy(
            np.concatenate(
                [
                    np.random.default_rng([0, step, rank]).normal(size=(2, 3, 6, 6))
                    for rank in range(2)
                ]
            )
        ).float()
        return {"total": (model(x) - x.mean((2, 3))[:, :2]).square().mean()}

    torch.manual_seed(3)
    both.model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.Conv2d(8, 4, 3),
        torch.nn.Flatten(),
        torch.nn.Linear(16, 2),
    )
    start = [p.clone() for p in both.model.parameters()]
    single, one = loop.fit(
        both.model,
        both,
        tmp_path / "c",
        steps=6,
        seed=0,
        lr=1e-2,
        warmup=1,
        matrices=[both.model[0].weight, both.model[1].weight],
        log=lambda line: None,
    )
    assert curves["total"] == pytest.approx(one["total"], rel=1e-4)
    for a, b, c in zip(shared.parameters(), single.parameters(), start):
        assert (a - b).abs().max() < 1e-3 and (a - c).abs().max() > 1e-2


LONG = float((1 << 21) + 3)


def _sums(folder):
    v = torch.arange(LONG) * (replicas.rank() + 1)
    replicas.add_up(v)
    (folder / str(replicas.rank())).write_bytes(v.numpy().tobytes())


def _fails_in_one(folder):
    if replicas.rank() == 1:
        raise ValueError("not this view")
    replicas.add_up(torch.zeros(3))


def test_replicas_add_up_long_vectors_and_end_together(tmp_path):
    before = dict(os.environ)
    replicas.in_replicas(2, _sums, tmp_path)
    for rank in "01":
        v = np.frombuffer((tmp_path / rank).read_bytes(), np.float32)
        assert np.array_equal(v, np.arange(LONG, dtype=np.float32) * 3)
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="not this view"):
        replicas.in_replicas(2, _fails_in_one, tmp_path)
    assert dict(os.environ) == before and replicas.count() == 1


def test_muon_makes_every_direction_count_alike():
    g = torch.Generator().manual_seed(0)
    u, v = (
        torch.linalg.qr(torch.randn(6, 6, generator=g))[0],
        torch.linalg.qr(torch.randn(20, 6, generator=g))[0].T,
    )
    # one direction 30 times stronger than another
    stretched = u @ torch.diag(torch.logspace(0, -1.5, 6)) @ v
    for m in (stretched, stretched.T):
        values = torch.linalg.svdvals(muon.orthogonal(m))
        assert values.min() > 0.6 and values.max() < 1.3
    lined_up = torch.sum(muon.orthogonal(stretched) * (u @ v)) / 6
    assert lined_up > 0.8  # the same singular vectors


def test_the_encoder_leaves_out_padding():
    """Padding neither costs time nor changes the statistics of the image beside it."""
    m = sam.model(0)
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 192, 256))).float()
    x = m.preprocess(image)
    assert x.shape[-2:] == (256, 256)
    with torch.no_grad():
        e = m.image_encoder(x)
        assert (
            e.shape[-2:] == (64, 64)
            and not e[..., 48:, :].any()
            and torch.equal(e[..., :48, :], m.image_encoder(x[..., :192, :]))
        )
        assert m.image_encoder(torch.zeros(1, 3, 256, 256)).shape[-2:] == (64, 64)
        tall = m.image_encoder(m.preprocess(image[..., :100]))
        assert tall[..., :48, :25].abs().sum() > 0 and not tall[..., 32:].any()


def test_clicks_fall_on_regions_and_their_masks_follow(scenes):
    rng = np.random.default_rng(1)
    losses = sam.Losses(sam.model(0), scenes)
    for v in range(4):
        clicks = sam.sample_clicks(scenes.ids[v], losses.stuff[scenes.scene[v]], 40, rng)
        under = scenes.ids[v, 0][clicks[:, 1], clicks[:, 0]]
        # stuff is clicked on rarely
        assert set(under.tolist()) == {1, 2, 3, 4} and (under == 4).mean() < 0.4
    for _ in range(6):
        image, ids = sam.augmented(scenes.images[0], scenes.ids[0], rng)
        assert image.shape == scenes.images[0].shape and ids.shape == scenes.ids[0].shape
        redness = (image[..., 0].astype(int) - image[..., 2]).ravel()
        reddest = np.argsort(redness)[-200:]
        assert (ids[2].ravel()[reddest] == 1).mean() > 0.9  # image and ids were moved together


def ask(m, embedding, points):
    """Masks [P, 3, h, w] and predicted IoU [P, 3] of single clicks [P, 2] (x, y) into an image
    embedding.
    """
    sparse, dense = m.prompt_encoder(
        points=(torch.tensor(points).float()[:, None], torch.ones(len(points), 1)),
        boxes=None,
        masks=None,
    )
    return m.mask_decoder(
        image_embeddings=embedding,
        image_pe=m.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )


def test_a_click_reads_the_cell_it_lies_in():
    """From the first step: what is under the click decides about its mask, and nothing else that is
    as far as two cells away.
    """
    m = sam.model(0)
    embedding = torch.randn(
        1, 64, 64, 64, generator=torch.Generator().manual_seed(0), requires_grad=True
    )
    under = {}
    handle = m.mask_decoder.under.register_forward_hook(
        lambda module, inputs, output: under.update(read=inputs[0])
    )
    with torch.no_grad():
        masks, scores = ask(m, embedding, [(100.0, 60.0), (103.0, 63.0), (40.0, 200.0)])
    handle.remove()
    assert masks.shape == (3, 3, 64, 64) and scores.shape == (3, 3)
    for read, (x, y) in zip(under["read"], ((25, 15), (25, 15), (10, 50))):
        nearness = torch.nn.functional.cosine_similarity(
            read[:, None, None], embedding[0].detach(), dim=0
        )
        best = divmod(int(nearness.argmax()), 64)
        assert abs(best[0] - y) <= 1 and abs(best[1] - x) <= 1 and nearness.max() > 0.6
        far = nearness.clone()
        far[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = -1
        assert far.max() < 0.6


def test_clicks_do_not_see_each_other():
    m = sam.model(0)
    embedding = torch.randn(1, 64, 64, 64, generator=torch.Generator().manual_seed(1))
    points = [(100.0, 60.0), (30.0, 30.0), (200.0, 150.0)]
    with torch.no_grad():
        together, scores = ask(m, embedding, points)
        alone = [ask(m, embedding, [p]) for p in points]
    assert torch.allclose(together, torch.cat([a for a, _ in alone]), atol=1e-4) and torch.allclose(
        scores, torch.cat([b for _, b in alone]), atol=1e-4
    )
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_sam_learns_what_is_under_a_click(scenes, monkeypatch):
    """Sixty steps on two scenes of three plain objects: the click's object is told from
    the others.
    """
    monkeypatch.setattr(sam, "CLICKS", 8)
    monkeypatch.setattr(sam, "ZOOMED", 0.0)
    m = sam.model(0).train()
    losses = sam.Losses(m, scenes)
    matrices = sam.matrices(m)
    special = {id(p) for p in matrices}
    optimisers = [
        torch.optim.AdamW([p for p in m.parameters() if id(p) not in special], lr=3e-3),
        muon.Muon(matrices, lr=3e-3),
    ]
    found = []
    for step in range(60):
        out = losses(step, np.random.default_rng([0, step]))
        for o in optimisers:
            o.zero_grad()
        out["total"].backward()
        for o in optimisers:
            o.step()
        found.append(float(out["iou_whole"]))
    assert np.mean(found[-5:]) > 0.7 > 0.5 > found[0], found


def test_clip_learns_two_names(scenes, monkeypatch):
    monkeypatch.setattr(clip, "BATCH", 16)
    tokenizer = WordTokenizer(clip.vocabulary(scenes))
    model = clip.model(0, tokenizer)
    losses = clip.Losses(model, tokenizer, scenes)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-4)
    history = []
    for step in range(40):
        torch.manual_seed(step)
        out = losses(step, np.random.default_rng([0, step]))
        optimiser.zero_grad()
        out["total"].backward()
        optimiser.step()
        history.append(float(out["total"].detach()))
    # what a model that knows nothing has in a batch of 16
    assert np.mean(history[-5:]) < 0.85 * np.log(16)


def test_only_complete_regions_and_stuff_are_trained_on(scenes):
    hidden = data.Scenes(
        scenes.images, scenes.ids, scenes.scene, scenes.nodes, [frozenset({3})] * 4
    )
    assert {i for _, _, i in clip.regions(hidden)} == {3, 4}
    assert {i for _, _, i in clip.regions(scenes)} == {1, 2, 3, 4}


def test_complete_means_neither_cut_nor_hidden():
    ids, depth = np.zeros((12, 16), int), np.full((12, 16), 2.0)
    ids[3:9, 2:7] = 1
    ids[3:9, 7:12] = 2  # beside 1, nearer: hides nothing unless it borders on it
    depth[ids == 1], depth[ids == 2] = 1.0, 0.5
    ids[0:3, 14:16] = 3  # cut by the border
    found = data.complete_ids({"whole": ids}, depth)
    assert found == [2]
    depth[ids == 2] = 1.0
    assert data.complete_ids({"whole": ids}, depth) == [1, 2]


def test_weights_round_trip_in_half_precision(tmp_path):
    m = sam.model(3)
    loop.write_weights(m, tmp_path / "w.safetensors")
    again = sam_model.load_mini_sam(tmp_path / "w.safetensors")
    for (name, a), b in zip(m.state_dict().items(), again.state_dict().values()):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4), name


def test_scores_of_a_model_that_knows_nothing(scenes):
    """Untrained weights score low, and every score is there with its blocks and counts."""
    got = score.score_sam(sam.model(0).eval(), scenes)
    for level in ("subpart", "part", "whole"):
        assert (
            0 <= got[f"click_iou_{level}"]["mean"] < 0.6
            and got[f"click_iou_{level}"]["n"] == got[f"click_iou_{level}_one_look"]["n"] > 0
        )
    # The subpart map repeats what has no subparts: only the dot is a subpart of its own.
    assert (
        got["click_iou_subpart_own"]["n"] == 4 < got["click_iou_subpart"]["n"]
        and "click_iou_part_own" not in got
    )
    # One click in each finest region: the square counts twice as a whole, once for its dot.
    assert (
        got["click_iou_whole"]["n"] == 8 < got["click_iou_whole_per_click"]["n"] == 12
        and got["click_iou_subpart_per_click"] == got["click_iou_subpart"]
    )
    for level in ("subpart", "part", "whole"):
        assert (
            sum(r["n"] for r in got[f"click_iou_{level}_by_area"]) >= got[f"click_iou_{level}"]["n"]
        )
    tokenizer = WordTokenizer(clip.vocabulary(scenes))
    got = score.score_clip(clip.model(0, tokenizer).eval(), tokenizer, scenes)
    assert got["classes"] == 2 and set(got["texts"]) == {"red box", "blue ball"}
    assert got["top1_complete"]["n"] == 8 and 0 <= got["cross_object_pairs_above_0.7"] <= 1
    assert (
        got["found_in_view_whole"]["n"] == 8
        and got["found_in_view_subpart"]["n"] == 4
        and "found_in_view_part" not in got
    )


def test_a_text_finds_its_region_among_all_of_its_view(scenes):
    """An encoder that knows every region finds all of them; one to which all look alike finds the
    first of each view, the red box.
    """
    names = ["red box", "box dot", "blue ball", "grey table"]

    class Encoder:
        def __init__(self, knows: bool):
            self.knows = knows

        def encode_text(self, texts):
            return np.eye(4)[[names.index(t) for t in texts]]

        def encode_crops(self, crops):
            assert len(crops) == 4
            return (
                self.encode_text(["red box", "blue ball", "grey table", "box dot"])
                if self.knows
                else np.ones((4, 4))
            )

    assert {
        k: (g["mean"], g["n"]) for k, g in score.found_in_view(Encoder(True), scenes).items()
    } == {
        "found_in_view_whole": (1.0, 8),
        "found_in_view_subpart": (1.0, 4),
        "found_in_view_surface": (1.0, 4),
    }
    assert [g["mean"] for g in score.found_in_view(Encoder(False), scenes).values()] == [
        0.5,
        0.0,
        0.0,
    ]


def test_a_folder_without_scenes_or_with_a_damaged_one_is_named(tmp_path):
    (tmp_path / f"{CATALOGUE_SEEDS[0]}.npz").write_bytes(b"PK")
    (tmp_path / f"{data.HELD_OUT_SEED}.npz").write_bytes(b"PK")
    with pytest.raises(SceneError, match="no rendered scenes"):
        data.training_seeds(tmp_path, catalogue=False)
    (tmp_path / "1000000.npz").write_bytes(b"PK")
    assert data.training_seeds(tmp_path, catalogue=False) == [1000000] and data.training_seeds(
        tmp_path, catalogue=True
    ) == [1000000, CATALOGUE_SEEDS[0]]
    with pytest.raises(SceneError, match="1000000.npz.*delete the file"):
        data.load(tmp_path, [1000000])


BUNDLED = sorted(p.name for p in weights.folder().glob("*.safetensors"))


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_weights_are_what_their_record_says(name):
    record = weights.provenance(name)
    path = weights.folder() / name
    assert weights.digest(path) == record["sha256"] and path.stat().st_size == record["bytes"]
    assert record["training"]["seed"] == 0 and record["training"]["code"] and record["scores"]
    first, last = record["data"]["held_out_seeds"]
    orbits = name == weights.MINI_SAM2
    assert first >= data.HELD_OUT_SEED and last - first + 1 == (
        len(data.HELD_OUT_ORBITS) if orbits else data.HELD_OUT_BLOCKS * data.SCENES_PER_BLOCK
    )


def test_bundled_weights_are_small():
    sizes = {n: (weights.folder() / n).stat().st_size for n in BUNDLED}
    assert (
        sizes[weights.MINI_SAM] + sizes[weights.MINI_CLIP] <= 12e6
        and sizes[weights.MINI_SAM2] <= 8e6
    ), sizes
    assert json.loads((weights.folder() / "mini_clip.json").read_text())["scores"]["classes"] >= 25


def test_scoring_nothing_is_one_clear_error(tmp_path):
    from lab.training.make import score_again

    with pytest.raises(ModelError, match="no weights here to score"):
        score_again(tmp_path, tmp_path, threads=1)


@pytest.fixture(scope="module")
def film():
    """Two orbits of six views: a box and a ball that move to the right by 16 pixels a view, on a
    table.
    """
    images = np.full((12, 192, 256, 3), 90, np.uint8)
    ids = np.full((12, 3, 192, 256), 3, np.uint16)
    for n in range(12):
        x = 16 * (n % 6)
        for i, (y, colour) in enumerate(((20, (210, 40, 40)), (110, (40, 40, 210))), 1):
            images[n, y : y + 60, 20 + x : 90 + x] = colour
            ids[n, :, y : y + 60, 20 + x : 90 + x] = i
    node = lambda text, stuff=False: {
        "texts": [text],
        "family": text,
        "level": "whole",
        "stuff": stuff,
        "parent": 0,
        "colour": "",
    }
    nodes = {1: node("box"), 2: node("ball"), 3: node("table", True)}
    return data.Scenes(images, ids, np.repeat([0, 1], 6), [nodes, nodes], [frozenset()] * 12)


@pytest.fixture(scope="module")
def tracker():
    return sam2.model(0, sam2.trunk_of(sam.model(1)))


def test_clips_show_what_is_followed(film, tracker):
    losses, rng = sam2.Losses(tracker, film, 10), np.random.default_rng(0)
    ways = set()
    for _ in range(30):
        images, masks = losses.clip(3, rng)
        assert (
            images.shape == (3, 3, 256, 256)
            and masks.shape[0] == 3
            and masks.shape[2:] == (192, 256)
        )
        assert (masks[0].sum((-1, -2)) >= sam2.MIN_AREA_PX).all()
        things = masks.sum((-1, -2))[0] == 60 * 70
        if things.any():
            columns = [int(np.flatnonzero(m.any(0).numpy())[0]) for m in masks[:, things][:, 0]]
            ways.add(np.sign(columns[1] - columns[0]))
            assert (
                abs(columns[1] - columns[0]) in (16, 32)
                and columns[2] - columns[1] == columns[1] - columns[0]
            )
    assert ways == {-1, 1}  # mirrored and played backwards, or not


def test_one_step_follows_with_memory_and_teaches_every_part(film, tracker):
    losses = sam2.Losses(tracker.train(), film, 10)
    out = losses(0, np.random.default_rng(3))
    out["total"].backward()
    for part in (
        "image_encoder.trunk.stem.0.0",
        "memory_attention.layers.0.cross_attn_image.v_proj",
        "memory_encoder.mask_downsampler.encoder.0",
        "sam_mask_decoder.output_upscaling.0",
    ):
        assert tracker.get_parameter(part + ".weight").grad.abs().sum() > 0, part
    # 16 of 70 columns a view, or all of the table
    assert 0.3 < float(out["iou_of_frame_before"]) < 0.95
    images, masks = losses.clip(3, np.random.default_rng(5))
    with torch.no_grad():
        one = sam2.follow(tracker.eval(), images, masks[0][:1])
        two = sam2.follow(tracker, images, masks[0][[0, 0]])
    assert torch.allclose(one[:, 0], two[:, 1], atol=1e-4)  # objects do not see each other


def test_tracking_scores_count_copying(film, tracker):
    got = score.score_sam2(tracker.eval(), film)
    # orbits, later views, objects, levels
    assert got["orbits"] == 2 and got["views"] == 6 and got["j_all"]["n"] == 2 * 5 * 2 * 3
    after = lambda n: (
        max(0, 70 - 16 * n) / (70 + 16 * n)
    )  # overlap of a square of 70 columns with itself n views earlier
    assert got["j_of_copying_the_truth_all"]["mean"] == pytest.approx(after(1), abs=1e-3)
    assert (
        got["j_of_copying_all"]["mean"]
        == pytest.approx(np.mean([after(n) for n in range(1, 6)]), abs=1e-3)
        and 0 <= got["j_whole"]["mean"] <= 1
    )
    assert [row["view"] for row in got["by_view"]] == [1, 2, 3, 4, 5] and got["by_view"][2][
        "j_of_copying"
    ] == pytest.approx(after(3), abs=1e-3)


def test_the_adapter_runs_mini_sam2_from_a_file(film, tracker, tmp_path):
    loop.write_weights(tracker, tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").stat().st_size <= 8e6
    predictor = load_sam2("mini", str(tmp_path / "w.safetensors"))
    for a, b in zip(tracker.state_dict().values(), predictor.state_dict().values()):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)
    with pytest.raises(ModelError, match="mini-SAM2"):
        load_sam2("mini", str(tmp_path / "nothing.safetensors"))
