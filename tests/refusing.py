"""How a script refuses what it cannot use, for tests."""

import pytest


def refused(main, arguments, words, capsys):
    """Nothing printed, and 2 after one line of error with some words; before it only bars of progress may stand."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    *before, line = err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert "Traceback" not in "".join(before)
