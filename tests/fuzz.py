"""Damaged and hostile files for every reader: `python -m tests.fuzz --full` (25,000 inputs),
without --full a short form.

Each input is one mutated file. It must be read, or refused with a CclkitError that names the file
(for settings: the setting) and a reason: within SECONDS of computing, with at most MEMORY_MB more
memory, without any other exception or end of the process, without pickles, processes or network,
and without writing outside the output folder. Inputs depend on target and number alone, so `--only
TARGET:NUMBER` repeats one.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("CCLKIT_QUIET", "1")

import mutations
import numpy as np
import torch
from conftest import HEIGHT, WIDTH, write_plane_scene

from cclkit import config, settings
from cclkit.downloads import archives, fetching, lookup, records, registry, status
from cclkit.errors import CclkitError
from cclkit.evaluation.truth import read_grey
from cclkit.files import file_digest, save_npz
from cclkit.foundation import clip as clip_model, weights
from cclkit.gaussians.blending_cache import open_blending_cache
from cclkit.gaussians.model import Gaussians, load_ply, save_ply
from cclkit.notebook.measured import load_sweep, read_sweep
from cclkit.places import DATA
from cclkit.runs.engine import _told
from cclkit.runs.graph import GRAPH
from cclkit.runs.run import Run
from cclkit.runs.store import Artefact, Store
from cclkit.scenes.load import content_hash, load_scene

SECONDS = 10.0
HANGS = 90.0
MEMORY_MB = 400
MEMORY_DISK = "/dev/shm" if os.path.isdir("/dev/shm") else None
SMALL = {
    "front_end.masks": "simulated",
    "front_end.features": "simulated",
    "front_end.propagation": "simulated",
    "gaussians.iterations": 2,
    "gaussians.start_gaussians": 200,
    "gaussians.densify": False,
    "field.iterations": 3,
    "codebook.steps": 5,
    "codebook.n_prototypes": 8,
    "field.hidden": (8,),
    "field.mode": "cached",
    "field.pixels_per_mask": 10,
    "field.batch": 64,
    "field.top_k": 4,
}


@dataclass(frozen=True)
class Target:
    """One kind of file and its reader."""

    file: str  # below the folder that `make` fills; "" where the input is no file
    mutate: mutations.Mutate
    make: Callable[[Path], None]
    read: Callable[[Path, Path], None]  # folder with the mutated file, folder that may be written
    share: int = 400  # inputs of the full form


# ---------------------------------------------------------------- what is read


def plane(folder: Path) -> None:
    write_plane_scene(folder, n_views=3)


def plane_binary(folder: Path) -> None:
    import pycolmap

    plane(folder)
    model = pycolmap.Reconstruction()
    model.read_text(str(folder / "plane/sparse/0"))
    shutil.rmtree(folder / "plane/sparse")
    (folder / "plane/sparse/0").mkdir(parents=True)
    model.write_binary(str(folder / "plane/sparse/0"))


def plane_instances(folder: Path) -> None:
    plane(folder)
    scene = folder / "plane"
    shutil.move(scene / "ground_truth/whole", scene / "instances")
    shutil.rmtree(scene / "ground_truth")
    (scene / "instances/classes.json").write_text(
        json.dumps({"1": "table", "2": "bear", "5": "apple"})
    )


def forward_facing(folder: Path) -> None:
    from PIL import Image

    scene = folder / "plane"
    (scene / "images").mkdir(parents=True)
    rows = []
    for n in range(3):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 40 * n, np.uint8)).save(
            scene / f"images/{n:02d}.jpg"
        )
        pose = np.concatenate(
            [
                np.array([[0, 1, 0, 0.1 * n], [1, 0, 0, 0], [0, 0, -1, 0.0]]),
                [[HEIGHT], [WIDTH], [60.0]],
            ],
            1,
        )
        rows.append([*pose.ravel(), 0.5, 2.0])
    np.save(scene / "poses_bounds.npy", np.array(rows))
    (scene / "segmentations/00").mkdir(parents=True)
    (scene / "segmentations/classes.txt").write_text("red apple\nbear\ntable\n")
    for name in ("red apple", "bear", "table"):
        Image.fromarray((np.indices((HEIGHT, WIDTH)).sum(0) % 2 * 255).astype(np.uint8)).save(
            scene / f"segmentations/00/{name}.png"
        )


def scene(folder: Path, out: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # entries that are skipped are named in warnings
        s = load_scene(folder / "plane")
    content_hash(s), s.queries
    view = s.views[0]
    view.image(), view.camera.centre
    if s.depth_folder is not None:
        s.depth(view)
    if s.ground_truth is not None:
        s.ground_truth.ids(view, "whole"), s.ground_truth.ids(view, "subpart")
    for masks in s.class_masks.values():
        for path in masks.values():
            read_grey(path)


def splat(folder: Path) -> None:
    g = torch.Generator().manual_seed(0)
    r = lambda *shape: torch.randn(*shape, generator=g)
    save_ply(Gaussians(r(20, 3), r(20, 4), r(20, 3), r(20), r(20, 4, 3)), folder / "g.ply")


def text_splat(folder: Path) -> None:
    splat(folder)
    head, rows = (folder / "g.ply").read_bytes().split(b"end_header\n", 1)
    np.savetxt(
        folder / "t.ply",
        np.frombuffer(rows, "<f4").reshape(20, -1),
        header=head.decode().replace("binary_little_endian", "ascii") + "end_header",
        comments="",
    )


def weight_files(folder: Path) -> None:
    from safetensors.torch import save_file

    state = {
        "a.weight": torch.arange(12.0).reshape(3, 4),
        "a.bias": torch.zeros(3, dtype=torch.float16),
        "n": torch.tensor(3),
    }
    save_file(state, folder / "w.safetensors")
    torch.save(state, folder / "w.pth")
    torch.save(state, folder / "old.pth", _use_new_zipfile_serialization=False)


def load_weights(name: str):
    def read(folder: Path, out: Path) -> None:
        state = weights.load_weights(folder / name, "a test")
        model = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 3)})
        model.register_buffer("n", torch.tensor(0))
        weights.fill(model, state, folder / name, "a test")

    return read


def bundled_clip(folder: Path) -> None:
    for name in ("mini_clip.json", "mini_clip_words.txt", "mini_clip.safetensors"):
        shutil.copy(DATA / "models" / name, folder / name)


def load_bundled_clip(folder: Path, out: Path) -> None:
    before, weights.folder = weights.folder, lambda: folder
    try:
        weights.provenance("mini_clip.safetensors")
        clip_model.load_mini_clip()
    finally:
        weights.folder = before


def registry_files(folder: Path) -> None:
    shutil.copy(DATA / "registry.toml", folder / "registry.toml")
    (folder / "data/checkpoints").mkdir(parents=True)
    name, e = next((n, e) for n, e in registry.entries().items() if e.kind == "checkpoint")
    (folder / "data" / e.target).parent.mkdir(parents=True, exist_ok=True)
    (folder / "data" / e.target).write_bytes(b"weights")
    records.write_record(
        folder / "data",
        name,
        {
            "files": {Path(e.target).name: {"bytes": 7, "sha256": "0" * 64}},
            "downloads": {"u": "0" * 64},
            "source": "offline",
            "source_sha256": "0" * 64,
        },
    )
    records.write_record(folder / "data", "lerf_ovs", str(folder), records.SOURCES)


def read_registry(folder: Path, out: Path) -> None:
    before = os.environ.get("CCLKIT_REGISTRY")
    os.environ["CCLKIT_REGISTRY"] = str(folder / "registry.toml")
    registry._load.cache_clear()
    try:
        items = status.status(folder / "data")
        status.as_text(items)
        for e in registry.entries().values():
            (
                fetching.by_hand(e),
                records.part_file(e, folder / "data"),
                records.recorded(e, folder / "data"),
            )
            lookup.digest_of_checkpoint(folder / "data" / e.target)
    finally:
        os.environ.pop("CCLKIT_REGISTRY")
        if before is not None:
            os.environ["CCLKIT_REGISTRY"] = before
        registry._load.cache_clear()


def archive_files(folder: Path) -> None:
    names = {
        "lerf/figurines/images/a.jpg": b"\xff\xd8" * 300,
        "lerf/figurines/sparse/0/cameras.bin": bytes(100),
        "lerf/label/a.json": b"{}" * 50,
    }
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as z:
        for name, body in names.items():
            z.writestr(name, body)
    for file, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz")):
        with tarfile.open(folder / file, mode) as t:
            for name, body in names.items():
                info = tarfile.TarInfo(name)
                info.size = len(body)
                t.addfile(info, io.BytesIO(body))


def unpack(name: str):
    def read(folder: Path, out: Path) -> None:
        archives.unpack(folder / name, out / "unpacked", registry.entry("lerf_ovs"))

    return read


def sweep_files(folder: Path) -> None:
    (folder / "s.toml").write_text(
        'title = "t"\nkind = "population"\n[fixed]\n"population.n_views" = 4\n"codebook.lr" ='
        ' 0.01\n[grid]\narm = ["pull", "both"]\nseed = [0, 1, 2]\n"codebook.margin" = [0.5, 0.7]\n'
    )
    (folder / "rows.csv").write_text(
        "arm,seed,margin,miou,key\nboth,0,0.5,61.2500,00ff00ff00ff00ff\n"
        "pull,1,0.7,58.0000,11ff00ff00ff00ff\n"
    )


def read_sweep_rows(folder: Path, out: Path) -> None:
    read_sweep(folder / "rows.csv")


def settings_text(folder: Path) -> None:
    rows = [f"{name}={value}" for name, value, _ in settings.describe(config.profile("mini"))]
    (folder / "settings").write_text("\n".join(rows))


def one_line(content: bytes, rng: mutations.Rng) -> bytes:
    lines = content.splitlines()
    return mutations.text(lines[int(rng.integers(0, len(lines)))], rng)


def read_settings(folder: Path, out: Path) -> None:
    """As after --set."""
    config.profile(
        "mini",
        **settings.parse_settings(
            [(folder / "settings").read_bytes().decode("utf-8", "surrogateescape")]
        ),
    )


def run_folder(folder: Path) -> None:
    plane(folder)
    run = Run(folder / "plane", config.profile("mini", **SMALL), folder / "run")
    run.to(report=lambda _: None)
    # one name for the tests, whatever the key
    for stage in sorted(p for p in (folder / "run").iterdir() if p.is_dir()):
        (folder / stage.name).symlink_to(next(stage.iterdir()))


def _found(folder: Path, out: Path, sealed: bool) -> Run:
    """The run with all its artefacts as they were found; ``sealed``: whoever damaged a file wrote
    its digest, too.
    """
    run = Run(folder / "plane", config.profile("mini", **SMALL), out / "run")
    for stage in run.stages():
        at = (folder / stage).resolve()
        record = json.loads((at / "stage.json").read_text())
        if sealed:
            record["files"] = {
                n: {"bytes": (at / n).stat().st_size, "sha256": file_digest(at / n)}
                for n in record["files"]
            }
        run.engine._artefacts[stage] = Artefact(stage, at.name, at, record, reused=True)
    return run


def read_run(sealed: bool):
    def read(folder: Path, out: Path) -> None:
        run = _found(folder, out, sealed)
        view = run.scene.views[0]
        (
            run.candidates(view),
            run.masks(view),
            run.features(view),
            run.tracks(view),
            run.track_starts("sp"),
            run.carried(view, "sp"),
        )
        (
            run.training_set(),
            run.codebooks(),
            run.mask_codes(view),
            run.index_maps(view),
            run.gaussians(),
            run.reconstruction_history(),
        )
        run.relevancy(view, ["bear"]), run.field_curves(), run.evaluation(), run.blending_cache()

    return read


def read_record(folder: Path, out: Path) -> None:
    """A record that was damaged: the stage counts as finished, or is made again."""
    (key,) = (p.name for p in (folder / "run/masks").iterdir())
    shutil.copytree(folder / "run/masks", out / "run/masks")
    (out / "precious").write_text("x")
    store = Store(out / "run")
    found = store.find("masks", key) or store.ensure(
        "masks", key, lambda f: save_npz(f / "frame_00001.npz", x=np.zeros(1)), about={}
    )
    assert (out / "precious").exists(), "a file outside the run folder is gone"
    _told(found, GRAPH["masks"].told)


def read_cache(folder: Path, out: Path) -> None:
    cache = open_blending_cache((folder / "blending").resolve())
    cache.truncation()
    run = _found(folder, out, False)
    cache.check(run.gaussians(), run.scene.views)
    cache.codes({v.name: run.index_maps(v) for v in run.scene.views})
    cache.splat(torch.zeros(len(run.gaussians()), 2), np.arange(len(cache)))


def _targets() -> dict[str, Target]:
    m = mutations
    t = {
        f"colmap {n}.bin": Target(f"plane/sparse/0/{n}.bin", m.anything, plane_binary, scene, 620)
        for n in ("cameras", "images", "points3D", "rigs", "frames")
    }
    t |= {
        f"colmap {n}.txt": Target(f"plane/sparse/0/{n}.txt", m.text, plane, scene, 500)
        for n in ("cameras", "images", "points3D")
    }
    t |= {
        "label json": Target("label/plane/frame_00002.json", m.json_file, plane, scene, 1240),
        "objects.json": Target("plane/ground_truth/objects.json", m.json_file, plane, scene, 620),
        "classes.json": Target("plane/instances/classes.json", m.json_file, plane_instances, scene),
        "scene.json": Target(
            "plane/scene.json",
            m.json_file,
            lambda f: (
                plane(f),
                (f / "plane/scene.json").write_text('{"held_out": ["frame_00001.jpg"]}'),
            ),
            scene,
        ),
        "photograph": Target("plane/images/frame_00001.jpg", m.anything, plane, scene, 500),
        "depth png": Target("plane/depth/frame_00001.png", m.anything, plane, scene),
        "ids png": Target("plane/ground_truth/whole/frame_00001.png", m.anything, plane, scene),
        "class mask png": Target(
            "plane/segmentations/00/bear.png", m.anything, forward_facing, scene
        ),
        "poses_bounds.npy": Target("plane/poses_bounds.npy", m.npy, forward_facing, scene, 1240),
        "classes.txt": Target(
            "plane/segmentations/classes.txt", m.text, forward_facing, scene, 620
        ),
        "ply": Target("g.ply", m.ply, splat, lambda f, out: load_ply(f / "g.ply"), 1240),
        "text ply": Target("t.ply", m.text, text_splat, lambda f, out: load_ply(f / "t.ply"), 370),
        "safetensors": Target(
            "w.safetensors", m.safetensors, weight_files, load_weights("w.safetensors"), 1240
        ),
        "torch file": Target("w.pth", m.anything, weight_files, load_weights("w.pth"), 500),
        "old torch file": Target("old.pth", m.anything, weight_files, load_weights("old.pth"), 500),
        "model record": Target("mini_clip.json", m.json_file, bundled_clip, load_bundled_clip, 200),
        "model words": Target("mini_clip_words.txt", m.text, bundled_clip, load_bundled_clip, 200),
        "registry.toml": Target("registry.toml", m.text, registry_files, read_registry, 930),
        "checksums.json": Target(
            "data/checksums.json", m.json_file, registry_files, read_registry, 370
        ),
        "sources.json": Target("data/sources.json", m.json_file, registry_files, read_registry),
        "settings": Target("settings", one_line, settings_text, read_settings, 1240),
        "sweep toml": Target(
            "s.toml", m.text, sweep_files, lambda f, out: load_sweep(f / "s.toml"), 930
        ),
        "sweep csv": Target("rows.csv", m.text, sweep_files, read_sweep_rows),
        "zip": Target("a.zip", m.zip_file, archive_files, unpack("a.zip"), 930),
        "tar": Target("a.tar", m.tar_file, archive_files, unpack("a.tar"), 620),
        "tar.gz": Target("a.tar.gz", m.tar_file, archive_files, unpack("a.tar.gz"), 370),
        "stage.json": Target("masks/stage.json", m.json_file, run_folder, read_record, 370),
        "blending record": Target("blending/cache.json", m.json_file, run_folder, read_cache, 190),
    }
    t |= {
        f"blending {n}.npy": Target(f"blending/{n}.npy", m.npy, run_folder, read_cache, 120)
        for n in ("view", "pixel", "ids", "weights", "residual")
    }
    files = {
        "candidates/frame_00001.npz": m.npz,
        "masks/frame_00001.npz": m.npz,
        "features/frame_00001.npz": m.npz,
        "tracks/tracks.npz": m.npz,
        "tracks/carried_sp.npz": m.npz,
        "codebook/codebook.safetensors": m.safetensors,
        "codebook/codes.npz": m.npz,
        "gaussians/gaussians.ply": m.ply,
        "gaussians/history.npz": m.npz,
        "field/field.safetensors": m.safetensors,
        "field/curves.npz": m.npz,
        "evaluation/evaluation.json": m.json_file,
    }
    for file, mutate in files.items():
        t[f"artefact {file}"] = Target(file, mutate, run_folder, read_run(sealed=False), 60)
        t[f"sealed {file}"] = Target(file, mutate, run_folder, read_run(sealed=True), 200)
    return t


TARGETS = _targets()


# ---------------------------------------------------------------- one input


class Broken(Exception):
    """What an input did that it may not."""


def mutated(name: str, number: int, original: bytes) -> bytes:
    rng = np.random.default_rng([zlib.crc32(name.encode()), number])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return TARGETS[name].mutate(original, rng)


def try_one(name: str, folder: Path, number: int, guard: Guard) -> str:
    """ "read" or "refused". Raises Broken."""
    t = TARGETS[name]
    path, out = folder / "in" / t.file, folder / "out"
    real = path.resolve()
    original = real.read_bytes()
    content = mutated(name, number, original)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    real.write_bytes(content)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    result = "read"
    try:
        with guard.watching(out):
            t.read(folder / "in", out)
    except CclkitError as e:
        result = "refused"
        said = str(e)
        if t.file == "settings":
            if "setting" not in said:
                raise Broken(f"the message names no setting: {said!r}") from e
        elif str(folder) not in said or not said.split(str(folder), 1)[1].partition(": ")[2]:
            raise Broken(f"the message names no file or no reason: {said!r}") from e
    except (Exception, RecursionError) as e:
        raise Broken(
            f"{type(e).__name__}:"
            f" {str(e)[:200]}\n{''.join(traceback.format_tb(e.__traceback__)[-4:])}"
        ) from e
    finally:
        real.write_bytes(original)
    if guard.seen:
        raise Broken(f"touched what it may not: {guard.seen[:3]}")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if grown > MEMORY_MB:
        raise Broken(f"took {grown:.0f} MB more memory")
    if (spent := time.process_time() - start) > SECONDS:
        raise Broken(f"took {spent:.1f} s")
    return result


class Guard:
    """Notes what an input makes the interpreter do: writes outside a folder, pickles, processes,
    connections.
    """

    WRITES = {
        "os.mkdir": 1,
        "os.rename": 2,
        "os.remove": 1,
        "os.rmdir": 1,
        "os.link": 2,
        "os.symlink": 2,
        "os.truncate": 1,
        "os.chmod": 1,
        "shutil.rmtree": 1,
        "shutil.move": 2,
        "shutil.copyfile": 2,
    }
    NEVER = (
        "pickle.find_class",
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.fork",
        "socket.connect",
        "socket.getaddrinfo",
        "exec_never",
    )

    def __init__(self):
        self.out: str | None = None
        self.seen: list[str] = []
        sys.addaudithook(self._event)

    def watching(self, out: Path):
        import contextlib

        @contextlib.contextmanager
        def watch():
            self.out, self.seen = str(out.resolve()), []
            try:
                yield
            finally:
                self.out = None

        return watch()

    def _event(self, event: str, args: tuple) -> None:
        if self.out is None:
            return
        if event in self.NEVER:
            self.seen.append(event)
        elif event == "open":
            path, mode, flags = args
            writes = (
                any(c in mode for c in "wax+")
                if isinstance(mode, str)
                else bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))
            )
            if writes:
                self._inside(event, path)
        elif event in self.WRITES:
            for path in args[: self.WRITES[event]][-1:]:
                self._inside(event, path)

    def _inside(self, event: str, path) -> None:
        if isinstance(path, int) or os.fspath(path) in ("/dev/null", b"/dev/null"):
            return
        full = os.path.realpath(os.fsdecode(path))
        if full == f"/proc/{os.getpid()}/clear_refs":
            return  # how the peak of this process's memory is reset
        if full != self.out and not full.startswith(self.out + os.sep):
            self.seen.append(f"{event} {full}")


# ---------------------------------------------------------------- many


def _work(folder: Path, jobs: list[tuple[str, int]], at, since, results) -> None:
    """Jobs from ``at`` on; a limit on memory turns what would take the machine's into an error of
    this process.
    """
    size = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if sys.platform == "linux"
        else 0
    )
    if size:
        resource.setrlimit(resource.RLIMIT_AS, (size + 4 * 2**30,) * 2)
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # pycolmap logs each refusal
    guard = Guard()
    while at.value < len(jobs):
        name, number = jobs[at.value]
        since.value = time.monotonic()
        try:
            results.put(
                (name, number, try_one(name, folder / name.replace("/", "_"), number, guard), "")
            )
        except Broken as e:
            results.put((name, number, "broken", str(e)))
        except Exception as e:
            results.put(
                (
                    name,
                    number,
                    "broken",
                    (
                        f"the mutation itself: {type(e).__name__}:"
                        f" {e}\n{traceback.format_exc()[-600:]}"
                    ),
                )
            )
        at.value += 1
    since.value = float("inf")


def run(
    counts: dict[str, int], folder: Path, report=print
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Try that many inputs of each target; returns the outcomes by target, and what is broken."""
    made: dict[Callable, Path] = {}
    for name in counts:
        t = TARGETS[name]
        into = folder / name.replace("/", "_") / "in"
        if t.make in made:
            shutil.copytree(made[t.make], into, symlinks=True)
            for link in (p for p in into.iterdir() if p.is_symlink()):
                there = into / link.readlink().relative_to(made[t.make])
                link.unlink()
                link.symlink_to(there)
        else:
            into.mkdir(parents=True)
            t.make(into)
            made[t.make] = into
    jobs = [
        (name, n)
        for name, many in counts.items()
        for n in range(many)
        if (folder / name.replace("/", "_") / "in" / TARGETS[name].file).exists()
    ]
    import pycolmap  # noqa: F401  imported once, by the parent of all workers

    context = multiprocessing.get_context("fork")
    at, since, results = (
        context.Value("q", 0, lock=False),
        context.Value("d", float("inf"), lock=False),
        context.SimpleQueue(),
    )
    outcomes: dict[str, dict[str, int]] = {
        name: {"read": 0, "refused": 0, "broken": 0} for name in counts
    }
    broken: list[str] = []

    def collect():
        while not results.empty():
            name, number, result, detail = results.get()
            outcomes[name][result] += 1
            if result == "broken":
                broken.append(f"{name}:{number}: {detail}")
                report(broken[-1])

    while at.value < len(jobs):
        worker = context.Process(target=_work, args=(folder, jobs, at, since, results))
        since.value = float("inf")
        worker.start()
        while worker.is_alive():
            worker.join(0.05)
            collect()
            if time.monotonic() - since.value > HANGS:
                worker.kill()
                worker.join()
                break
        collect()
        # the worker hung or died: count that input and go on with the next
        if at.value < len(jobs):
            name, number = jobs[at.value]
            why = (
                "hangs"
                if time.monotonic() - since.value > HANGS
                else f"ended the process ({worker.exitcode})"
            )
            outcomes[name]["broken"] += 1
            broken.append(f"{name}:{number}: {why}")
            report(broken[-1])
            folder_of = folder / name.replace("/", "_")
            t = TARGETS[name]  # what it read is left mutated
            shutil.rmtree(folder_of)
            (folder_of / "in").mkdir(parents=True)
            t.make(folder_of / "in")
            at.value += 1
    return outcomes, broken


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument(
        "--full", action="store_true", help="all inputs of every target, instead of a twentieth"
    )
    p.add_argument(
        "--only", nargs="+", metavar="TARGET[:NUMBER]", help="these targets, or single inputs again"
    )
    args = p.parse_args()
    counts = {n: t.share if args.full else max(10, t.share // 20) for n, t in TARGETS.items()}
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=MEMORY_DISK) as folder:
        if args.only and any(":" in o for o in args.only):
            for name, _, number in (o.rpartition(":") for o in args.only):
                (Path(folder) / "one/in").mkdir(parents=True)
                TARGETS[name].make(Path(folder) / "one/in")
                print(
                    mutated(
                        name,
                        int(number),
                        (Path(folder) / "one/in" / TARGETS[name].file).read_bytes(),
                    )[:1500]
                )
                print(try_one(name, Path(folder) / "one", int(number), Guard()))
                shutil.rmtree(Path(folder) / "one")
            return 0
        outcomes, broken = run(
            {n: c for n, c in counts.items() if not args.only or n in args.only}, Path(folder)
        )
    for name, o in outcomes.items():
        print(f"{name:40} read {o['read']:5}  refused {o['refused']:5}  broken {o['broken']:3}")
    total = sum(sum(o.values()) for o in outcomes.values())
    print(f"{total} inputs, {len(broken)} broken, {time.monotonic() - start:.0f} s")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
