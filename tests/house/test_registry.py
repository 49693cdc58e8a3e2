"""The registry of names says what is built: no more, no less, and nothing else."""

from __future__ import annotations

from . import registry


def test_every_name_that_is_built_is_in_the_registry_and_none_besides() -> None:
    """Events, methods, routes, reasons, settings and limits: page and code name the same things."""
    listed, built = registry.named(registry.PAGE.read_text()), registry.built()

    assert listed.keys() == built.keys()
    for section, names in built.items():
        assert (names - listed[section], listed[section] - names) == (set(), set()), section


def test_the_registry_is_what_the_code_says() -> None:
    """Payloads, members, numbers and defaults too: `python -m tests.house.registry --write` brings it up to date."""
    assert registry.PAGE.read_text() == registry.page()
