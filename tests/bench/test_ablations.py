"""Every ablation at its smallest: a variant that has become stale is found here. No figure is judged."""

from __future__ import annotations

import os

import bench.findings as sheet
import pytest
from bench.ablations import ABLATIONS, WITHOUT
from bench.findings import Row, Scale
from bench.replaced import check, replaced

DEEP = os.environ.get("TURNLANE_LEVEL", "default") != "default"
SMALLEST = Scale(rounds=1, size=0.001)
SHORT = ("P1", "P6", "P7", "P8", "P11", "P12", "P13", "P14", "evolve")
"""The others have a runtime under load or processes of their own, some ten seconds each: at level ci."""


@pytest.mark.parametrize("name", ABLATIONS if DEEP else SHORT)
def test_an_ablation_comes_to_its_end_with_rows_and_without_violations(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both sides of each row ran."""
    monkeypatch.setattr(sheet, "NOTES", sheet.Notes())

    rows = [found for found in ABLATIONS[name](SMALLEST) if isinstance(found, Row)]

    assert rows and all(row.ratio.median > 0 for row in rows)
    assert [str(one) for one in sheet.NOTES.checks.values() if one.violations] == []


@pytest.mark.parametrize("lack", WITHOUT)
def test_the_methods_of_a_server_that_lacks_something_are_called_as_those_that_they_replace(lack: str) -> None:
    """They are replaced in its process, where no type checker looks."""
    owner, methods = WITHOUT[lack]
    for name, method in methods.items():
        check(owner, name, method)


class Owner:
    async def send(self, data: bytes, *, speaks: bool = True) -> bool:
        return speaks


async def without_a_parameter(owner: Owner, data: bytes) -> bool:
    return True


async def without_an_answer(owner: Owner, data: bytes, *, speaks: bool = True) -> None:
    return None


def at_once(owner: Owner, data: bytes, *, speaks: bool = True) -> bool:
    return True


async def alike(owner: Owner, data: bytes, *, speaks: bool = True) -> bool:
    return False


@pytest.mark.parametrize("stale", [without_a_parameter, without_an_answer, at_once])
def test_a_variant_that_is_not_called_like_its_method_is_refused(stale: object) -> None:
    """Before anything runs, and the class stays as it is."""
    send = Owner.send

    with (
        pytest.raises(TypeError, match=r"is stale: Owner.send is async \(data, \*, speaks=True\) -> 'bool', it is"),
        replaced(Owner, "send", stale),  # type: ignore[arg-type]
    ):
        pass

    assert Owner.send is send


def test_a_variant_stands_in_for_its_method_for_a_while_only() -> None:
    send = Owner.send

    with replaced(Owner, "send", alike):
        assert Owner.send is alike

    assert Owner.send is send
