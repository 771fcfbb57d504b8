"""Check how scripts refuse arguments that they cannot use."""

import pytest


def check_refusal(main, arguments, words, capsys):
    """Check that a script exits with 2 after one line of error that holds these words.

    Nothing is printed to stdout; only progress bars may come before the line.
    """
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    *before, line = err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert "Traceback" not in "".join(before)
