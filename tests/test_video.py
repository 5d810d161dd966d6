"""Films: frames come back in order and in colour, odd and mixed sizes are fitted, the fall-back is
a GIF.
"""

import cv2
import numpy as np
import pytest
from PIL import Image

from cclkit.errors import ArtefactError
from cclkit.video import write_video

COLORS = [(200, 40, 40), (40, 180, 60), (50, 60, 220), (230, 220, 60)]


def frames(h=48, w=64):
    return [np.full((h, w, 3), c, np.uint8) for c in COLORS]


def read(path):
    film, out = cv2.VideoCapture(str(path)), []
    while True:
        ok, f = film.read()
        if not ok:
            return out
        out.append(f[..., ::-1])


def test_a_film_holds_every_frame_in_order_and_in_colour(tmp_path):
    path = write_video(frames(), tmp_path / "sub" / "film")
    assert path == tmp_path / "sub" / "film.webm" and [p.name for p in path.parent.iterdir()] == [
        "film.webm"
    ]
    got = read(path)
    assert len(got) == 4
    for f, c in zip(got, COLORS):
        assert f.shape == (48, 64, 3) and np.abs(f.reshape(-1, 3).mean(0) - c).max() < 12


def test_odd_and_mixed_sizes_take_the_first_ones_even_size(tmp_path):
    first, second = frames(47, 65)[0], frames(30, 30)[1]
    got = read(write_video([first, second], tmp_path / "film"))
    assert [f.shape for f in got] == [(46, 64, 3)] * 2 and np.abs(
        got[1].reshape(-1, 3).mean(0) - COLORS[1]
    ).max() < 12


def test_without_an_encoder_it_is_a_gif(tmp_path, monkeypatch):
    class Closed:
        def __init__(self, *a):
            pass

        def isOpened(self):
            return False

    monkeypatch.setattr(cv2, "VideoWriter", Closed)
    path = write_video(frames(), tmp_path / "film", fps=5)
    with Image.open(path) as gif:
        assert path.name == "film.gif" and gif.n_frames == 4 and gif.info["duration"] == 200


def test_no_frame_and_no_folder_are_errors(tmp_path):
    with pytest.raises(ArtefactError, match="no frames"):
        write_video([], tmp_path / "film")
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="choose another --out"):
        write_video(frames(), tmp_path / "file" / "film")
