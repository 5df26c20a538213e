"""Shapes and types of the library are checked while its tests run. As in Python itself, an int is a float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
