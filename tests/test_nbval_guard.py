"""The guard beside nbval: notebooks of which too little is compared fail."""

import re
import subprocess
import sys

import nbformat


def run(folder, *args):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "lab.site.nbval_guard",
            "-c",
            "/dev/null",
            "--rootdir",
            str(folder),
            *args,
            str(folder),
        ],
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


def write(folder, name, n, *, source="print({i})", outputs=True):
    nb = nbformat.v4.new_notebook()
    nb.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    for i in range(n):
        cell = nbformat.v4.new_code_cell(source.format(i=i), execution_count=i + 1)
        if outputs:
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=f"{i}\n")]
        nb.cells.append(cell)
    nbformat.write(nb, folder / name)


def test_guard_fails_notebooks_of_which_too_little_is_compared(tmp_path):
    write(tmp_path, "good.ipynb", 3)
    write(tmp_path, "few.ipynb", 2)
    write(tmp_path, "stripped.ipynb", 3, source="x = {i}", outputs=False)
    write(tmp_path, "ignored.ipynb", 3, source="# NBVAL_IGNORE_OUTPUT\nprint({i})")
    code, text = run(tmp_path, "--nbval")
    assert code == 1 and "11 passed" in text, text  # nbval itself is content
    counts = {
        name: (int(n), few)
        for name, n, few in re.findall(r"(\w+)\.ipynb +(\d+) outputs compared(  TOO FEW)?", text)
    }
    assert counts == {
        "good": (3, ""),
        "few": (2, "  TOO FEW"),
        "stripped": (0, "  TOO FEW"),
        "ignored": (0, "  TOO FEW"),
    }


def test_guard_passes_a_compared_notebook_and_sees_through_lax_mode(tmp_path):
    write(tmp_path, "good.ipynb", 3)
    code, text = run(tmp_path, "--nbval")
    assert code == 0 and "3 outputs compared" in text and "TOO FEW" not in text, text
    code, text = run(tmp_path, "--nbval-lax")  # runs all cells and compares none
    assert code == 1 and "0 outputs compared  TOO FEW" in text, text


def test_guard_says_when_there_was_no_notebook(tmp_path):
    code, text = run(tmp_path)
    # pytest's own status: nothing collected
    assert code not in (0, 1) and "no notebook was compared" in text
