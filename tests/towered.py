"""The type checker of the tests: beartype that accepts an int as a float, as components do."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
