"""The table of HTTP operations: each has a right, and no status or reason is given that no row declares."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from turnlane.core.reasons import Reason
from turnlane.daemon.access import RIGHTS, Reach
from turnlane.daemon.operation import EVERY, GUARDED, WITH_BODY, WRITING, Operation, together
from turnlane.daemon.operations import OPERATIONS

from .reading import called, dotted, modules, nothing

OPEN = {"read_health", "read_readiness", "read_inspector", "read_inspector_script", "read_inspector_style"}
"""What whoever reaches the listener may ask. Everything else needs a right."""


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.name)
def test_an_operation_needs_a_right(operation: Operation) -> None:
    need = operation.need

    assert (need.reach is Reach.OPEN) == (operation.name in OPEN)
    assert set(need.rights) <= RIGHTS
    assert need.rights or need.reach in (Reach.OPEN, Reach.SYNC, Reach.ANY)
    assert need.reach is not Reach.SESSION or "session" in operation.path_names


def test_a_path_with_its_method_is_one_operation() -> None:
    """And the other spellings of a path are nobody else's."""
    places = [(one.method, path) for one in OPERATIONS for path in (one.path, *one.also)]

    assert len(set(places)) == len(places)


def problems() -> Iterator[tuple[str, int, Reason]]:
    """Each `Problem(status, Reason.X, ...)` of the daemon, with its place."""
    for module in modules():
        if module.name.startswith("daemon/"):
            for place, node in module.nodes():
                if isinstance(node, ast.Call) and called(node) == "Problem":
                    status, reason = node.args[0], dotted(node.args[1])
                    if isinstance(status, ast.Constant) and reason.startswith("Reason."):
                        yield (
                            f"{place} (line {node.lineno})",
                            int(str(status.value)),
                            Reason[reason.removeprefix("Reason.")],
                        )


def test_no_failure_is_given_that_no_operation_declares() -> None:
    """A status or reason that stands in no row is in no document: a client could not know it."""
    declared = together(EVERY, GUARDED, WITH_BODY, WRITING, *(one.all_refusals() for one in OPERATIONS))
    found = list(problems())

    assert len(found) > 15
    nothing(
        (
            f"{place}: {status} {reason.value}"
            for place, status, reason in found
            if reason not in declared.get(status, ())
        ),
        "failures that no operation declares",
    )


def test_a_declared_reason_fits_its_status() -> None:
    """The status of a reason is that of the registry. Where the contract says another one it is listed here."""
    odd = {
        (status, reason)
        for one in OPERATIONS
        for status, reasons in one.all_refusals().items()
        for reason in reasons
        if reason.http_status != status
    }

    assert odd == {(400, Reason.ILLEGAL_IN_PHASE)}  # a run's or worker's move, as the contract has it
