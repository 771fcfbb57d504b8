"""The type checker of the tests: beartype with PEP 484's tower, as the components have it (an int is a float)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
