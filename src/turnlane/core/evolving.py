"""`evolve`: a copy of a slotted attrs value with some fields changed, as `attrs.evolve` makes it, for less.

Every event of a turn makes a new state out of the old one, so this is the most called function of the machines.
`attrs.evolve` goes through the constructor with each field by name; a copy needs no constructor, since these classes
have no converters, validators or post-init (the first call for a class looks). For type checkers it is `attrs.evolve`,
whose plugin knows the fields. Measured by `python -m bench.ablations evolve`.
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from attrs import evolve as evolve
else:

    def evolve(value, /, **changes):
        """A new value of the same class. Raises TypeError for a field that the class does not have."""
        cls = value.__class__
        read, puts, by_name = _CLASSES.get(cls) or _learn(cls)
        new = object.__new__(cls)
        for put, kept in zip(puts, read(value), strict=False):
            put(new, kept)
        for name, changed in changes.items():
            if name not in by_name:
                raise TypeError(f"{cls.__name__} has no field {name!r}")
            by_name[name](new, changed)
        return new


_CLASSES: dict[type, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}
"""Class -> (reads all fields, their setters in the same order, setters by name)."""


def _learn(cls: type) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The slots of a class, from the descriptors that its instances are read and written through."""
    fields = attrs.fields(cls)
    if len(fields) < 2 or hasattr(cls, "__attrs_post_init__") or any(one.converter or one.validator for one in fields):
        raise TypeError(f"{cls.__name__} is not a plain value of two fields or more: use attrs.evolve")
    by_name = {field.name: getattr(cls, field.name).__set__ for field in fields}
    learnt = _CLASSES[cls] = attrgetter(*by_name), tuple(by_name.values()), by_name
    return learnt
