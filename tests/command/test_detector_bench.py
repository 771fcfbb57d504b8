"""Objects seen on two devices are compared kind by kind and box by box."""

import pytest
import torch

from grpo_guard.command.benches import detector
from grpo_guard.reward._detection import Segment


def see(name, score, box):
    mask = torch.ones(1, 1, dtype=torch.bool)
    return Segment(name=name, color="", box=box, score=score, mask=mask)


CAT = see("cat", 0.9, (0.0, 0.0, 10.0, 10.0))
LARGE_CAT = see("cat", 0.8999, (0.0, 0.0, 20.0, 20.0))
DOG = see("dog", 0.5, (5.0, 5.0, 9.0, 9.0))


def test_the_same_objects_do_not_differ_in_any_order():
    seen = [[CAT, LARGE_CAT, DOG], []]
    mirrored = [[DOG, LARGE_CAT, CAT], []]
    difference = detector.compare_objects(seen, mirrored)
    assert vars(difference) == {"objects": 3, "pictures": 0, "score": 0.0, "edge": 0.0}


def test_differences_are_the_largest_ones():
    there = [[see("cat", 0.89, (0.0, 1.0, 10.0, 10.0)), see("dog", 0.52, (5.0, 5.0, 9.0, 12.0))]]
    difference = detector.compare_objects([[CAT, DOG]], there)
    assert (difference.objects, difference.pictures, difference.edge) == (2, 0, 3.0)
    assert difference.score == pytest.approx(0.02)


@pytest.mark.parametrize("there", [[CAT], [CAT, CAT], [CAT, LARGE_CAT], []])
def test_other_objects_are_counted_by_picture(there):
    """Their scores and boxes have no partner."""
    difference = detector.compare_objects([[CAT, DOG], [DOG]], [there, [DOG]])
    assert vars(difference) == {"objects": 3, "pictures": 1, "score": 0.0, "edge": 0.0}


def test_the_detector_is_sure_of_objects_and_a_device_equals_itself(monkeypatch):
    monkeypatch.setattr(detector, "PHOTO_SIDE", 64)
    monkeypatch.setattr(detector, "SETTINGS", "detector.most=100 detector.side=64")
    table = detector.compare_devices(1)
    first, second = (list(column.cells) for column in table.columns)
    assert int(second[0]) > 0
    assert second[1:] == ["0", "0", "0", "0.00%"]
    assert first[0] == "objects seen on the CPU"
