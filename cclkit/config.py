"""Settings: one frozen dataclass per stage, and the two profiles.

Every field carries, in the string under it, its meaning and where its value comes from:
"paper: VALUE" for a published constant, "paper does not say (ours: …, because …)" otherwise.
The profile changes values, never code.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
from dataclasses import (
    dataclass,
    field as nested,  # a stage is called `field`
    fields,
    replace,
)
from typing import Any

from .errors import ConfigError


@dataclass(frozen=True)
class SimulationConfig:
    """The simulated front end: ground truth with dialled-in imperfection (no counterpart in the
    paper).
    """

    seed: int = 0
    """Seed of all simulated imperfections. They belong to the data, so they do not follow the run's
    seed.
    """
    incomplete_rate: float = 0.35
    """Share of masks that lose a piece, as SAM's do under occlusion or on parts that differ in
    colour.
    """
    incomplete_cut: float = 0.55
    """Largest share of its area that an incomplete mask loses (drawn uniformly from 0.15 up to
    this).
    """
    split_rate: float = 0.05
    """Share of masks that are cut into two masks."""
    merge_rate: float = 0.03
    """Share of masks that swallow a touching neighbour."""
    missing_rate: float = 0.05
    """Share of masks that are not found in a view."""
    jitter_px: int = 1
    """Boundary jitter: a mask is dilated or eroded by up to this many pixels."""
    min_area_px: int = 30
    """Regions smaller than this are not segmented at all."""
    track_loss_rate: float = 0.10
    """Chance per view that the propagator loses an object in that view."""
    dim: int = 64
    """Dimension of the simulated features (CLIP ViT-B/16 has 512)."""
    between_object_cosine: float = 0.6
    """Mean cosine between features of different objects, 0–0.8. CLIP crops are all alike, and the
    push margin is 0.7.
    """
    hierarchy: float = 0.35
    """Share of a part's own direction that it takes from its whole, so that a part is nearer its
    whole than others.
    """
    confuser_drift: float = 1.0
    """How far a mask that is half missing moves from its own class (0) towards a confuser class (1:
    midway and beyond).
    """
    feature_noise: float = 0.25
    """Length of the independent per-mask noise added to a unit feature."""
    text_gap: float = 0.5
    """Length of the constant offset between text and image features (CLIP's modality gap)."""
    text_noise: float = 0.15
    """Length of the per-phrase deviation of a text from the class it names."""


@dataclass(frozen=True)
class SamConfig:
    """The segment_anything model that proposes masks."""

    model: str = "mini"
    """"mini" (bundled, trained on random Tabletop scenes), "vit_b", "vit_l" or "vit_h". Paper:
    ViT-H.
    """
    checkpoint: str = ""
    """Path of the weights; empty: the bundled ones of mini, else what `cclkit data fetch` brought.
    The file's sha256 counts for artefact keys, not its path.
    """
    points_per_side: int = 32
    """Clicks per side of the uniform grid; time grows with its square. Paper: 32; the profile mini
    clicks 24 × 24, which takes half the time.
    """
    points_per_batch: int = 64
    """Clicks decoded at once; memory grows with it, results do not change."""
    crop_layers: int = 0
    """Extra passes over 4, 16, … overlapping crops of the image. Paper does not say (ours: none,
    because each layer costs several times the pass before; 1, as LangSplat has, in the profile
    mini, whose photographs are small and whose small SAM finds small things only enlarged).
    """
    crop_points_divisor: int = 1
    """Clicks per side of a crop: points_per_side divided by this, once per layer. Paper does not
    say (ours: 1, because LangSplat has it; 2 in the profile mini, which clicks the crops as densely
    as the image for a quarter of the time).
    """
    box_nms_iou: float = 0.7
    """Within one output, of two masks whose boxes overlap more than this the one with the lower
    predicted IoU is dropped. Paper does not say (ours: 0.7, because segment_anything has it).
    """
    stability_offset: float = 1.0
    """Stability is the IoU of the mask at logits above +offset and above -offset. Paper does not
    say (ours: 1, because segment_anything has it).
    """
    precision: str = "float32"
    """"float32" or "bfloat16" (autocast; half the memory on a GPU)."""


@dataclass(frozen=True)
class ClipConfig:
    """The open_clip model that embeds masks and texts."""

    model: str = "mini"
    """"mini" (bundled) or a name of open_clip. Paper: ViT-B-16."""
    checkpoint: str = ""
    """Path of the weights; empty: the bundled ones of mini, else what `cclkit data fetch` brought.
    The file's sha256 counts for artefact keys, not its path.
    """
    crop: str = "complete"
    """"complete" (the whole box of a mask, averaged when it shrinks) or "langsplat" (its published
    pixels exactly, which lose the last row and column). Paper does not say (ours: complete, because
    nothing is gained by losing pixels).
    """
    prompts: str = "raw"
    """"raw" (the query itself, as LERF and LangSplat do) or "ensemble" (mean over a few templates).
    Paper does not say (ours: raw, because the methods it compares with do).
    """
    cone: float = 0.0
    """Component that all features of crops share, and all texts at a right angle to it, as a share
    of a unit feature's square: cosines of crops grow from x to cone + (1 - cone) x, those with
    texts shrink to (1 - cone) x. Paper: none, since CLIP's features lie in a narrow cone by
    themselves (0, also where the profile mini gets another model; 0.5 with mini-CLIP, which spreads
    features four times as wide, so that neither the push margin nor LERF's scale would mean what
    they mean with CLIP).
    """
    batch: int = 64
    """Crops encoded at once."""
    precision: str = "float32"
    """"float32" or "bfloat16"."""


@dataclass(frozen=True)
class Sam2Config:
    """The sam2 video predictor that carries masks from view to view."""

    model: str = "mini"
    """"mini" (bundled, trained on random Tabletop orbits; 256 pixels, whatever image_size says), or
    "sam2.1_hiera_" or "sam2_hiera_" with tiny, small, base_plus or large. Paper: SAM2, variant not
    given (ours: 2.1 large in paper).
    """
    checkpoint: str = ""
    """Path of the weights; empty: the bundled ones of mini, else what `cclkit data fetch` brought.
    The file's sha256 counts for artefact keys, not its path.
    """
    image_size: int = 1024
    """Side of the square that views are resized to, pixels; a multiple of 32. Paper does not say
    (ours: 1024, because the public weights were trained with it; mini-SAM2 has a size of its own).
    """
    objects_per_chunk: int = 16
    """Objects carried through the views at once; memory grows with it, and with fewer the images
    are encoded more often.
    """
    offload: bool = True
    """Keep images and memory of the sequence in main memory, not on the device."""
    precision: str = "float32"
    """"float32" or "bfloat16"."""


@dataclass(frozen=True)
class FrontEndConfig:
    """Which models stand behind masks, tracks and features."""

    masks: str = "sam"
    """What proposes masks: "sam" or "simulated" (ground truth with dialled-in imperfection). Paper:
    SAM.
    """
    features: str = "clip"
    """What embeds masks and texts: "clip" or "simulated". Paper: CLIP."""
    sam: SamConfig = nested(default_factory=SamConfig)
    """Masks, with masks "sam"."""
    clip: ClipConfig = nested(default_factory=ClipConfig)
    """Features, with features "clip"."""
    propagation: str = "sam2"
    """What carries the first view's masks to the others: "sam2", "simulated" (from ground truth),
    "geometric" (warped by the depth of the Gaussians) or "none" (only the first view's masks get
    labels). Paper: SAM2.
    """
    sam2: Sam2Config = nested(default_factory=Sam2Config)
    """Tracks, with propagation "sam2"."""
    simulation: SimulationConfig = nested(default_factory=SimulationConfig)
    """Settings of the simulated front end."""


@dataclass(frozen=True)
class MaskConfig:
    """Stage 1: candidates -> two-level label maps."""

    predicted_iou_min: float = 0.7
    """Drop candidates whose predicted IoU is not above this. Paper: filters by predicted IoU, value
    not given (ours: 0.7, LangSplat's; 0.5 in the profile mini, whose small SAM is less sure of
    itself).
    """
    stability_min: float = 0.85
    """Drop candidates whose stability is below this. Paper: filters by stability, value not given
    (ours: 0.85, LangSplat's; 0.5 in the profile mini, because a small SAM's outlines are softer).
    """
    overlap_iou_max: float = 0.8
    """Within one SAM output, drop a mask whose IoU with a better one is above this. Paper: "overlap
    rate", value not given (ours: 0.8, LangSplat's).
    """
    score_min: float = 0.7
    """Drop masks whose IoU×stability is not above this. Paper does not say (ours: 0.7, because
    LangSplat has it; 0.25 in the profile mini, the product of its other two).
    """
    inner_max: float = 0.5
    """LangSplat's rule for a mask inside a much larger one of the same SAM output (protocol E).
    Paper does not say (ours: 0.5, because LangSplat has it).
    """
    overlap_across_outputs: bool = True
    """Apply the overlap rule to the union of two outputs too. Paper does not say (ours: on, because
    an object without parts is found by several outputs, and its twins would get two tracks, which
    push then drives apart).
    """
    inner_across_outputs: bool = False
    """Apply that rule to the union of two outputs too. Paper does not say (ours: off, because it
    would delete every part inside its whole).
    """
    min_area_px: int = 20
    """Drop masks that keep fewer visible pixels than this in their label map. Paper does not say
    (ours: 20, because smaller crops carry no feature).
    """


@dataclass(frozen=True)
class TrackConfig:
    """Stage 2: propagate the first view's masks and associate."""

    iou_min: float = 0.5
    """A mask takes the label of the propagated mask with the largest IoU if that IoU is above this,
    else -1. Paper: 0.5.
    """
    reseed_every: int = 0
    """Every how many views masks without a label start tracks of their own, through all views; 0 =
    never. Paper: only the first view's masks are propagated (0).
    """
    reseed_iou_max: float = 0.5
    """A mask starts such a track only if no carried mask overlaps it by a larger IoU. Paper: no
    such tracks (ours: 0.5, so every mask without a label; smaller values start fewer second tracks
    of one object and label fewer masks).
    """
    check_every: int = 0
    """Every how many views the carried masks are propagated back to the check before; 0 = never.
    Paper: no such check (0).
    """
    check_iou_min: float = 0.5
    """A carried mask that overlaps the one propagated back by a smaller IoU is withdrawn. Paper: no
    such check (ours: 0.5, as for labels).
    """
    both_ways: bool = False
    """Where the capture ends beside where it began, carry masks both ways round until they meet, so
    that none goes farther than half of it. Paper does not say (ours: off, because SAM2 sees a video
    in its order; on in the profile mini, whose small SAM2 drifts).
    """


@dataclass(frozen=True)
class CodebookConfig:
    """Stage 3: contrastive codebook learning."""

    n_prototypes: int = 64
    """Codebook size N per level. Paper does not say (ours: 64, because LangSplatV2 has as many per
    level).
    """
    lambda_pull: float = 0.25
    """Weight of the pull loss. Paper: 0.25."""
    lambda_push: float = 0.25
    """Weight of the push loss. Paper: 0.25."""
    margin: float = 0.7
    """Push margin m: prototypes of different labels are pushed apart while their cosine exceeds it.
    Paper: 0.7.
    """
    normalisation: str = "pairs"
    """Mean that pull and push take: "pairs" (over all pairs of masks, so a label weighs by the
    square of its size) or "labels" (of each label's, or pair of labels', own mean). Paper does not
    say (ours: pairs, because its formulas sum over pairs).
    """
    init: str = "kmeans"
    """Initial prototypes: "kmeans" (cosine k-means++, Lloyd), "random" (random unit vectors) or
    "tracks" (centroids of the track labels, then k-means++ for the rest). Paper does not say (ours:
    kmeans, because random prototypes that win no mask never move).
    """
    update: str = "adam"
    """"adam" (the gradient of all losses) or "ema" (exponential averages of each prototype's
    features, corrected by the gradient of pull and push). Paper does not say (ours: adam, because
    the paper names betas).
    """
    ema_decay: float = 0.99
    """Share of a prototype that one step of "ema" keeps. Paper does not say (ours: 0.99, because
    vector quantisers commonly use it).
    """
    steps: int = 400
    """Optimisation steps. Paper does not say (not for this stage; ours: 400, because from a k-means
    start the losses are flat after about 100).
    """
    batch: int = 0
    """Masks per step, drawn without repetition until all were seen; 0 = all. Memory falls with it;
    a minibatch's mean over pairs is noisier than the whole's. Paper does not say (ours: 0, because
    counting pairs makes all masks affordable).
    """
    lr: float = 1e-3
    """Adam learning rate. Paper: 0.001, without saying for which stage."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam betas. Paper: (0.9, 0.999), without saying for which stage."""
    revive_every: int = 0
    """Every so many steps a prototype that wins no mask moves to the feature farthest from its
    prototype; 0 = never. Paper does not say (ours: 0, because a k-means start leaves hardly any).
    """
    collisions: str = "ignore"
    """Two labels on one prototype, where push has no gradient: "ignore" (the paper's form), "split"
    (a label that shares gets an unused prototype at its centroid) "centroids" (pull and push
    compare prototypes with label centroids instead of with each other) or "soft" (a mask stands in
    a pair for all prototypes, weighted by a softmax of its cosines, instead of for its nearest).
    Paper does not say (ours: ignore, because its formulas do, a k-means start leaves split no
    unused prototype, and at the paper's weights centroids gained less in the mechanism experiment;
    at weights of 1 they gained more).
    """
    load_balance: float = 0.0
    """Weight of LEGaussians' term against uneven use of the codes: share of masks on a code times
    its mean softmax weight, summed. Paper does not say (it names no such term; ours: 0, because
    from a k-means start it changed little in the mechanism experiment; from a random start it
    helps).
    """
    temperature: float = 0.02
    """Temperature of the softmax over cosines, with collisions "soft" or a load balance. Paper does
    not say (ours: 0.02, because cosines of masks lie so close that LEGaussians' 1 gives all codes
    nearly the same weight; of 0.01 to 0.1 the small ones did best in the mechanism experiment).
    """
    split_every: int = 50
    """Steps between two splits. Paper does not say (ours: 50, because the losses settle in about
    100).
    """
    split_cosine: float = 0.95
    """Labels whose centroids have a larger cosine than this may share a prototype: they may be one
    object tracked twice. Paper does not say (ours: 0.95, because crops of different objects reach
    0.8).
    """
    shared: bool = False
    """One codebook for both levels, instead of one each; pairs count within a level only, because a
    part may sit in both under different labels. Paper does not say (ours: false, because levels are
    queried apart).
    """
    shuffle_labels: bool = False
    """Control: permute the track labels among the labelled masks, which keeps their number and
    sizes and destroys their meaning. The start keeps the true ones, so that all arms start alike.
    """


@dataclass(frozen=True)
class GaussiansConfig:
    """RGB reconstruction."""

    init: str = "auto"
    """"points" (the scene's points, what 3DGS starts from), "depth" (back-projected depth),
    "random", or "auto": depth, else points, else random. Paper does not say (3DGS starts from
    points; ours: auto, because rendered scenes have depth, which needs fewer steps).
    """
    start_gaussians: int = 12_000
    """Number of Gaussians to start from at most, by sampling depth, points or random places. Paper
    does not say (ours: 12,000 in mini, because its photographs are small and a CPU has to keep up).
    """
    max_gaussians: int = 30_000
    """Densification stops growing once this many are reached, with one step's overshoot. Paper does
    not say (ours: 30,000 in mini, because its photographs are small and a CPU has to keep up).
    """
    iterations: int = 700
    """Optimisation steps, one view each. Paper: 30,000 (jointly with semantics)."""
    sh_degree: int = 1
    """Degree of the spherical harmonics. Paper does not say (3DGS uses 3; ours: 1 in mini, because
    that saves 3/4 of the coefficients).
    """
    densify: bool = True
    """Clone, split and prune as 3DGS does (gsplat's DefaultStrategy). Paper does not say (ours: on,
    because it builds on 3DGS).
    """


@dataclass(frozen=True)
class FieldConfig:
    """Stage 4: the semantic field."""

    mode: str = "rasterised"
    """"joint" (colours, geometry and features together, one whole view per step), or, with the
    Gaussians frozen after their reconstruction, "rasterised" (one whole view per step) or "cached"
    (pixels of all views, their blending weights computed once). Paper: joint (ours: joint in paper;
    rasterised in mini, so that codebooks can be compared on one reconstruction).
    """
    init: str = "random"
    """Features at the start, with frozen Gaussians: "random", or "votes" (every code a random unit
    vector, every Gaussian the mean of those its pixels vote for, as in the closed form). Paper does
    not say (ours: random, because joint training has no other way).
    """
    dim: int = 8
    """Length d_f of the feature carried by each Gaussian. Paper: 8."""
    hidden: tuple[int, ...] = (64,)
    """Hidden widths of the MLP decoder. Paper does not say (ours: 64 in mini because it is fast;
    128, 256 in paper because LEGaussians has them).
    """
    iterations: int = 200
    """Steps, both levels at once, of one view each or of `batch` pixels (see mode); with mode
    "joint", gaussians.iterations count instead. Paper: 30,000.
    """
    lr: float = 2e-3
    """Adam learning rate of the decoder. Paper: 0.001 over 30,000 steps, without saying for which
    stage (ours in mini: 0.002 over few steps).
    """
    feature_lr: float = 5e-2
    """Adam learning rate of the Gaussians' features. Paper: 0.001 over 30,000 steps, without saying
    for which stage (ours in mini: 0.05, since a feature cannot move further than rate × steps).
    """
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam betas. Paper: (0.9, 0.999), without saying for which stage."""
    normalise: bool = True
    """L2-normalise the rendered feature before decoding, as LEGaussians does. Paper does not say
    (ours: on, because the decoder should not see how opaque a pixel is).
    """
    joint_geometry: bool = True
    """With mode "joint": let the semantic loss move, shape and densify the Gaussians too. Paper:
    its framework figure marks position, rotation, scale and opacity as trained along (on).
    """
    joint_weight: float = 1.0
    """With mode "joint": weight of the semantic loss beside the colour's. Paper does not say (ours:
    1, because LEGaussians adds them as they are).
    """
    batch: int = 4096
    """Pixels per step, with mode "cached". Paper does not say (it renders whole views; ours: 4,096,
    because that takes about as long as the update of 300,000 Gaussians).
    """
    top_k: int = 16
    """Gaussians kept per cached pixel, those with the largest weights; disk and time grow with it.
    Paper does not say (it has no cache; ours: 16, because disk and time grow with it; what they
    miss is reported).
    """
    pixels_per_mask: int = 1024
    """Pixels sampled from every mask of every view for the cache; disk and build time grow with it.
    Paper does not say (it has no cache; ours: 1,024, because Gaussians between sparser pixels stay
    untrained: with 128 per mask mIoU fell by 6 and 13 points on two bundled scenes).
    """
    area_weighted: bool = True
    """Sample as many pixels uniformly over all masked ones instead of the same number from each
    mask, which keeps the loss's weights. Paper does not say (it uses all pixels; ours: on, because
    whole views weigh so too, and mIoU was 1 and 3 points higher on two bundled scenes; off, small
    objects count as much as large ones).
    """


@dataclass(frozen=True)
class QueryConfig:
    """Stage 5: text -> relevancy -> mask."""

    rule: str = "relevancy"
    """"relevancy" (LERF's pairwise rule against canonical phrases) or "softmax", for looking at a
    scene. Paper: a softmax over phrases (ours: relevancy, because the phrase set is unpublished). A
    named evaluation protocol brings its own rule.
    """
    scale: float = 10.0
    """Factor before the pairwise softmax, for looking at a scene. Paper does not say (ours: 10,
    because LERF's code has it, though no paper's formula does); evaluation protocols use that
    always.
    """
    decoding: str = "hard"
    """"hard" (a pixel has its most likely code) or "soft" (the mean relevancy of the codes,
    weighted by the decoder's softmax; each query then decodes the view again). Paper: hard, the
    prototype at the index map's code.
    """
    canonical: tuple[str, ...] = ("object", "things", "stuff", "texture")
    """Canonical phrases; also the phrase set of the protocol "paper". Paper does not say (ours:
    LERF's four, because the other protocols have them fixed).
    """
    temperature: float = 0.1
    """Temperature of the softmax rule, in the protocol "paper" too. Paper shows none, which is 1
    (ours: 0.1, because over cosines a temperature of 1 is almost flat).
    """


@dataclass(frozen=True)
class EvaluationConfig:
    """Stage 6: what is scored against what, under which protocol."""

    protocol: str = "auto"
    """langsplat, langsplat_v2, opengaussian, ovs3d_argmax, ovs3d_occam, legaussians, paper or
    ovs3d_langsplat. Paper does not say (ours: "auto", langsplat on LERF-OVS labels and
    ovs3d_langsplat on 3D-OVS masks, because the paper prints LangSplat's numbers beside its own).
    """
    views: str = "all"
    """"all" views with ground truth, as every published protocol does, training views included;
    "held_out": those no stage has seen; "training". Paper does not say (ours: "all", because
    published numbers are so).
    """
    truth: str = "labels"
    """"labels" of the data set, or "dense": exact ids of every view, in scenes that have them.
    Paper: labels.
    """
    level: str = "wp"
    """Level that protocols for fields of one level score (ovs3d_argmax, legaussians). Paper does
    not say (ours: wp, because classes are mostly whole objects).
    """
    paper_threshold: float = 0.5
    """Threshold of the protocol "paper". Paper does not say (ours: 0.5, because it is the middle of
    a map after min-max).
    """
    paper_min_max: bool = True
    """Stretch each level's map to 0..1 before that threshold. Paper does not say (ours: yes,
    because the height of a softmax depends on the unpublished temperature and phrase set).
    """
    selection_share: float = 0.7
    """How far from the lowest to the highest relevancy opengaussian's selection of Gaussians
    begins. Paper does not say (ours: 0.7, because protocol A cuts its stretched maps there).
    """
    flat_maps: str = "error"
    """What ovs3d_occam does with a map on which no threshold keeps an allowed share of pixels:
    "error", as its code does, or "empty": leave the level out, and answer nothing if none remains.
    Paper does not say (ours: "error", because a skipped failure would flatter the mean).
    """


@dataclass(frozen=True)
class Config:
    """Everything a run depends on beside the scene."""

    profile: str = "mini"
    """"mini" (bundled scenes, CPU, minutes) or "paper" (public data and checkpoints, CUDA)."""
    seed: int = 0
    """Seed of every random choice that is not part of the simulated data."""
    device: str = "cpu"
    """Where tensors live."""
    front_end: FrontEndConfig = nested(default_factory=FrontEndConfig)
    """Models behind masks, tracks and features."""
    masks: MaskConfig = nested(default_factory=MaskConfig)
    """Stage 1."""
    tracks: TrackConfig = nested(default_factory=TrackConfig)
    """Stage 2."""
    codebook: CodebookConfig = nested(default_factory=CodebookConfig)
    """Stage 3."""
    gaussians: GaussiansConfig = nested(default_factory=GaussiansConfig)
    """RGB reconstruction."""
    field: FieldConfig = nested(default_factory=FieldConfig)
    """Stage 4."""
    query: QueryConfig = nested(default_factory=QueryConfig)
    """Stage 5."""
    evaluation: EvaluationConfig = nested(default_factory=EvaluationConfig)
    """Stage 6."""

    def with_settings(self, settings: dict[str, Any]) -> Config:
        """A copy with dotted settings replaced, e.g. ``{"codebook.lambda_pull": 0}``.

        Another CLIP than mini-CLIP gets no cone unless one is set with it. Text values are parsed
        to the field's type. Raises ConfigError on an unknown name or an unusable value.
        """
        out = self
        for name, value in settings.items():
            if name == "profile":
                raise ConfigError(
                    "the profile is not a setting: it names a set of values; choose it with"
                    " --profile"
                )
            out = _replaced(out, name.split("."), value, name)
        if (
            settings.get("front_end.clip.model", "mini") != "mini"
            and "front_end.clip.cone" not in settings
        ):
            # public CLIPs have a cone of their own
            out = _replaced(out, ["front_end", "clip", "cone"], 0.0, "front_end.clip.cone")
        _check_ranges(out)
        return out


_POSITIVE = (
    "codebook.n_prototypes",
    "codebook.lr",
    "codebook.temperature",
    "codebook.split_every",
    "gaussians.start_gaussians",
    "gaussians.max_gaussians",
    "field.dim",
    "field.iterations",
    "field.lr",
    "field.feature_lr",
    "field.joint_weight",
    "field.batch",
    "field.top_k",
    "field.pixels_per_mask",
    "query.scale",
    "query.temperature",
    "front_end.simulation.dim",
    "front_end.sam2.objects_per_chunk",
    "front_end.sam2.image_size",
    "front_end.sam.points_per_side",
    "front_end.sam.points_per_batch",
    "front_end.sam.crop_points_divisor",
    "front_end.sam.stability_offset",
    "front_end.clip.batch",
)
_NOT_NEGATIVE = (
    "codebook.lambda_pull",
    "codebook.lambda_push",
    "codebook.steps",
    "codebook.batch",
    "codebook.load_balance",
    "codebook.revive_every",
    "gaussians.iterations",
    "gaussians.sh_degree",
    "masks.min_area_px",
    "front_end.simulation.jitter_px",
    "front_end.simulation.min_area_px",
    "front_end.simulation.feature_noise",
    "front_end.simulation.text_gap",
    "front_end.simulation.text_noise",
    "front_end.simulation.confuser_drift",
)
_SHARE = (
    "front_end.sam.box_nms_iou",
    "evaluation.paper_threshold",
    "evaluation.selection_share",
    "codebook.split_cosine",
    "tracks.iou_min",
    "tracks.reseed_iou_max",
    "tracks.check_iou_min",
    "masks.predicted_iou_min",
    "masks.stability_min",
    "masks.overlap_iou_max",
    "masks.score_min",
    "masks.inner_max",
    "front_end.simulation.incomplete_rate",
    "front_end.simulation.incomplete_cut",
    "front_end.simulation.split_rate",
    "front_end.simulation.merge_rate",
    "front_end.simulation.missing_rate",
    "front_end.simulation.track_loss_rate",
    "front_end.simulation.between_object_cosine",
    "front_end.simulation.hierarchy",
)


_CHOICES = {
    "device": ("cpu", "cuda"),
    "front_end.masks": ("sam", "simulated"),
    "front_end.features": ("clip", "simulated"),
    "front_end.propagation": ("sam2", "simulated", "geometric", "none"),
    "front_end.sam2.model": (
        "mini",
        *(
            f"{family}_hiera_{size}"
            for family in ("sam2.1", "sam2")
            for size in ("tiny", "small", "base_plus", "large")
        ),
    ),
    "front_end.sam2.precision": ("float32", "bfloat16"),
    "front_end.sam.model": ("mini", "vit_b", "vit_l", "vit_h"),
    "front_end.sam.precision": ("float32", "bfloat16"),
    "front_end.clip.crop": ("complete", "langsplat"),
    "front_end.clip.prompts": ("raw", "ensemble"),
    "front_end.clip.precision": ("float32", "bfloat16"),
    "codebook.normalisation": ("pairs", "labels"),
    "codebook.init": ("kmeans", "random", "tracks"),
    "codebook.update": ("adam", "ema"),
    "codebook.collisions": ("ignore", "split", "centroids", "soft"),
    "gaussians.init": ("auto", "depth", "points", "random"),
    "field.mode": ("rasterised", "cached", "joint"),
    "field.init": ("random", "votes"),
    "query.rule": ("relevancy", "softmax"),
    "query.decoding": ("hard", "soft"),
    "evaluation.protocol": (
        "auto",
        "langsplat",
        "langsplat_v2",
        "opengaussian",
        "ovs3d_argmax",
        "ovs3d_occam",
        "legaussians",
        "paper",
        "ovs3d_langsplat",
    ),
    "evaluation.views": ("all", "held_out", "training"),
    "evaluation.truth": ("labels", "dense"),
    "evaluation.level": ("sp", "wp"),
    "evaluation.flat_maps": ("error", "empty"),
}


def _check_ranges(config: Config) -> None:
    values = {name: value for name, value, _ in describe(config)}
    for name, choices in _CHOICES.items():
        if values[name] not in choices:
            raise ConfigError(
                f"setting {name}={values[name]!r} is unknown; use one of {', '.join(choices)}"
            )
    for name in ("codebook.betas", "field.betas"):
        if len(values[name]) != 2 or not all(0 <= b < 1 for b in values[name]):
            raise ConfigError(
                f"setting {name}={values[name]!r} is out of range; expected two numbers in 0..1,"
                " e.g. (0.9, 0.999)"
            )
    if values["front_end.sam2.image_size"] % 32:
        raise ConfigError(
            f"setting front_end.sam2.image_size={values['front_end.sam2.image_size']} is out of"
            " range; expected a multiple of 32"
        )
    if not all(w > 0 for w in values["field.hidden"]):
        raise ConfigError(
            f"setting field.hidden={values['field.hidden']!r} is out of range; expected widths"
            " above 0, e.g. (64,)"
        )
    for name, value in values.items():
        if isinstance(value, int) and not isinstance(value, bool) and not 0 <= value < 2**31:
            raise ConfigError(
                f"setting {name}={value!r} is out of range; expected a whole number in"
                f" 0..{2**31 - 1}"
            )
        if isinstance(value, float) and not abs(value) < 1e12:
            raise ConfigError(f"setting {name}={value!r} is out of range; expected a finite number")
    if values["field.mode"] == "joint" and not values["gaussians.iterations"]:
        raise ConfigError(
            "setting gaussians.iterations=0 leaves nothing to train with field.mode=joint; expected"
            " a number above 0, or another mode"
        )
    if values["field.mode"] == "joint" and values["field.init"] == "votes":
        raise ConfigError(
            "setting field.init=votes needs Gaussians to vote for, and with field.mode=joint there"
            " are none yet; use field.mode=rasterised or cached, or field.init=random"
        )
    for name in ("codebook.ema_decay", "front_end.clip.cone"):
        if not 0 <= values[name] < 1:
            raise ConfigError(
                f"setting {name}={values[name]} is out of range; expected a number of at least 0"
                " and below 1"
            )
    sam = {
        k: values[f"front_end.sam.{k}"]
        for k in ("points_per_side", "crop_layers", "crop_points_divisor")
    }
    if (
        sam["crop_layers"] > 8
        or sam["points_per_side"] < sam["crop_points_divisor"] ** sam["crop_layers"]
    ):
        raise ConfigError(
            f"setting front_end.sam.crop_points_divisor={sam['crop_points_divisor']} leaves no"
            f" click of {sam['points_per_side']} per side in a crop of layer {sam['crop_layers']};"
            " expected a smaller divisor, fewer layers (at most 8) or more points_per_side"
        )
    if values["codebook.n_prototypes"] > 2**16:
        raise ConfigError(
            f"setting codebook.n_prototypes={values['codebook.n_prototypes']} is out of range;"
            f" expected at most {2**16}"
        )
    if not values["query.canonical"] or not all(c.strip() for c in values["query.canonical"]):
        raise ConfigError(
            f"setting query.canonical={values['query.canonical']!r} is empty; expected at least one"
            " phrase"
        )
    for names, fits, wanted in (
        (_POSITIVE, lambda v: v > 0, "a number above 0"),
        (_NOT_NEGATIVE, lambda v: v >= 0, "a number of at least 0"),
        (_SHARE, lambda v: 0 <= v <= 1, "a number in 0..1"),
    ):
        for name in names:
            if not fits(values[name]):
                raise ConfigError(
                    f"setting {name}={values[name]!r} is out of range; expected {wanted}"
                )


def profile(name: str = "mini", **settings: Any) -> Config:
    """The settings of a profile. Raises ConfigError if it does not exist."""
    if name == "mini":
        base = Config(
            front_end=FrontEndConfig(
                sam=SamConfig(points_per_side=24, crop_layers=1, crop_points_divisor=2),
                clip=ClipConfig(cone=0.5),
            ),
            masks=MaskConfig(predicted_iou_min=0.5, stability_min=0.5, score_min=0.25),
            tracks=TrackConfig(both_ways=True),
        )
    elif name == "paper":
        base = Config(
            profile="paper",
            device="cuda",
            front_end=FrontEndConfig(
                sam=SamConfig(model="vit_h", precision="bfloat16"),
                clip=ClipConfig(model="ViT-B-16", precision="bfloat16"),
                sam2=Sam2Config(model="sam2.1_hiera_large", precision="bfloat16"),
            ),
            gaussians=GaussiansConfig(
                start_gaussians=1_000_000, max_gaussians=5_000_000, iterations=30_000, sh_degree=3
            ),
            field=FieldConfig(
                mode="joint", hidden=(128, 256), iterations=30_000, lr=1e-3, feature_lr=1e-3
            ),
        )
    else:
        raise ConfigError(f"unknown profile {name!r}; use 'mini' or 'paper'")
    return base.with_settings(settings)


def parse_settings(pairs: list[str]) -> dict[str, str]:
    """``["codebook.margin=0.5"]`` -> ``{"codebook.margin": "0.5"}``."""
    out = {}
    for pair in pairs:
        name, sep, value = pair.partition("=")
        if not sep or not name:
            raise ConfigError(
                f"setting {pair!r} has no value; write it as NAME=VALUE, e.g. codebook.margin=0.5"
            )
        out[name.strip()] = value.strip()
    return out


def describe(config: Any, prefix: str = "") -> list[tuple[str, Any, str]]:
    """Rows (dotted name, value, meaning) of every setting, in order; the meaning is the field's own
    docstring.
    """
    docs = _field_docs(type(config))
    rows = []
    for f in fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            rows += describe(value, f"{prefix}{f.name}.")
        else:
            rows.append((prefix + f.name, value, docs.get(f.name, "")))
    return rows


def as_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict (tuples as lists), the form that is hashed and stored beside artefacts."""
    out = {}
    for f in fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            value = as_dict(value)
        elif isinstance(value, tuple):
            value = list(value)
        out[f.name] = value
    return out


def _replaced(node: Any, path: list[str], value: Any, full: str) -> Any:
    names = [f.name for f in fields(node)]
    if path[0] not in names:
        every = [row[0] for row in describe(Config())]
        near = difflib.get_close_matches(full, every, n=1, cutoff=0.5) or difflib.get_close_matches(
            path[0], names, n=1, cutoff=0.0
        )
        raise ConfigError(
            f"unknown setting {full!r}; did you mean {near[0]!r}? `cclkit settings` lists all"
        )
    current = getattr(node, path[0])
    if dataclasses.is_dataclass(current):
        if len(path) == 1:
            raise ConfigError(
                f"setting {full!r} is a group; name one of its fields, e.g."
                f" {full}.{fields(current)[0].name}"
            )
        return replace(node, **{path[0]: _replaced(current, path[1:], value, full)})
    if len(path) > 1:
        raise ConfigError(
            f"unknown setting {full!r}; {'.'.join(full.split('.')[: -len(path) + 1])!r} is a single"
            " value"
        )
    return replace(node, **{path[0]: _coerced(value, current, full)})


def _coerced(value: Any, like: Any, name: str) -> Any:
    """`value` in the type of the default it replaces; the default decides, so a typo cannot change
    a type.
    """
    if isinstance(value, str) and not isinstance(like, str):
        try:
            value = ast.literal_eval({"true": "True", "false": "False"}.get(value.lower(), value))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as e:
            raise ConfigError(
                f"setting {name}={value!r} cannot be read; expected {type(like).__name__} like"
                f" {like!r}"
            ) from e
    if isinstance(like, bool):
        ok = isinstance(value, bool)
    elif isinstance(like, int):
        ok = isinstance(value, int) and not isinstance(value, bool)
    elif isinstance(like, float):
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        value = float(value) if ok else value
    elif isinstance(like, tuple):
        value = (value,) if isinstance(value, (int, float, str)) else value
        ok = isinstance(value, (tuple, list))
        value = tuple(value) if ok else value
        kind = (
            str
            if like and isinstance(like[0], str)
            else (int if like and isinstance(like[0], int) else float)
        )
        ok = ok and all(
            isinstance(v, (int, float) if kind is float else kind) and not isinstance(v, bool)
            for v in value
        )
    else:
        ok = isinstance(value, type(like))
    if not ok or (isinstance(value, float) and value != value):
        raise ConfigError(
            f"setting {name}={value!r} has the wrong type; expected {type(like).__name__} like"
            f" {like!r}"
        )
    return value


@functools.cache
def _field_docs(cls: type) -> dict[str, str]:
    """The string under each field of a dataclass, read from its source."""
    body = ast.parse(inspect.getsource(cls)).body[0].body
    docs = {}
    for a, b in zip(body, body[1:]):
        if (
            isinstance(a, ast.AnnAssign)
            and isinstance(b, ast.Expr)
            and isinstance(b.value, ast.Constant)
        ):
            docs[a.target.id] = " ".join(str(b.value.value).split())
    return docs
