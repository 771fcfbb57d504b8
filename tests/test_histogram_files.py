"""Files of histograms are read or, if they are damaged, refused; nothing in them runs."""

import io
import re
import zipfile

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grpo_guard.histogram_files import load_histograms

WHOLE = {"iteration": [0, 1], "edges": [0.0, 1.0, 2.0], "ratio_raw/hist/00": [[1, 2], [3, 4]]}

FLAGS = re.compile(rb"(PK\x01\x02.{4})..", re.DOTALL)
"""Where the directory of an archive says whether a file in it is encrypted."""
METHOD = re.compile(rb"(PK\x01\x02.{6})..", re.DOTALL)
"""Where it says how the file is compressed."""


def to_npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def to_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zip_up(header):
    """Return an archive with one array, of a header that may say anything."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("edges.npy", b"\x93NUMPY\x01\x00v\x00" + header.ljust(117) + b"\n")
    return buffer.getvalue()


def refusal(folder, content):
    """Return why a file of this content is refused; empty if it is read."""
    file = folder / "histograms.npz"
    file.write_bytes(content)
    try:
        load_histograms(file)
    except ValueError as error:
        return str(error)
    return ""


def test_a_whole_file_is_read(tmp_path):
    file = tmp_path / "histograms.npz"
    file.write_bytes(to_npz(**WHOLE))
    arrays = load_histograms(file)
    assert {key: array.tolist() for key, array in arrays.items()} == WHOLE
    assert refusal(tmp_path, to_npz(iteration=np.empty(0, int), edges=np.empty(0))) == ""


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "No data left in file"),
        (to_npz(**WHOLE)[:300], "File is not a zip file"),
        (FLAGS.sub(b"\\g<1>\1\0", to_npz(**WHOLE)), "is encrypted"),
        (METHOD.sub(b"\\g<1>\x63\0", to_npz(**WHOLE)), "compression method is not supported"),
        (to_npy(np.ones(3)), "context manager"),
        (to_npz(a=np.ones(3)), "its arrays are no histograms"),
        (to_npz(**WHOLE | {"iteration": [0]}), "its arrays are no histograms"),
        (to_npz(**WHOLE | {"edges": 1.0}), "its arrays are no histograms"),
        (to_npz(**WHOLE | {"edges": ["a", "b", "c"]}), "its arrays are no histograms"),
        (to_npz(**WHOLE | {"a": np.array([{}])}), "allow_pickle=False"),
        (zip_up(b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }" % 10**15), "Unable"),
        (zip_up(b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d,), }" % 10**30), "large"),
        (zip_up(b"((("), "EOF in multi-line statement"),
    ],
)
def test_a_damaged_file_is_refused(content, line, tmp_path):
    text = refusal(tmp_path, content)
    assert line in text
    assert "\n" not in text


@settings(max_examples=200)
@given(place=st.integers(0, 900), wrong=st.binary(min_size=1, max_size=4))
@example(place=8, wrong=b"\x63")
def test_a_file_with_wrong_bytes_is_read_or_refused(place, wrong, tmp_path_factory):
    content = to_npz(**WHOLE)
    refusal(tmp_path_factory.getbasetemp(), content[:place] + wrong + content[place + len(wrong) :])


def test_a_file_that_is_not_there_is_no_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_histograms(tmp_path / "histograms.npz")
