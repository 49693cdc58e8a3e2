"""Names are spelled once: tags, reasons, limits, methods, marks; and the public ones say what they do."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import attrs
import pytest

import turnlane
from turnlane import codec
from turnlane.core.limits import Limits
from turnlane.core.marks import cancel_kind
from turnlane.core.reasons import Kind, Reason
from turnlane.daemon import access, methods, protocol
from turnlane.machines import dispatch, turn, worker

from .reading import ROOT, agree, called, modules, nothing, other_tests, places, product

DECIDERS = tuple({kind.__module__: sys.modules[kind.__module__] for kind in codec.TAGS}.values())


def classes_under(room: Any, heading: str) -> Iterator[type]:
    """The classes of a decider's room below the comment that heads their kind."""
    source = inspect.getsource(room).splitlines()
    under = ""
    for line in source:
        if re.fullmatch(r"# [a-z][a-z ]*", line):
            under = line.removeprefix("# ")
        elif under == heading and (found := re.match(r"class (\w+)", line)) is not None:
            yield getattr(room, found[1])


def test_a_file_of_tests_has_a_name_of_its_own() -> None:
    """In folders that are no packages pytest knows a file by its name alone, and stops at a second one."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if not (path.parent / "__init__.py").exists()]

    nothing((name for name, count in Counter(names).items() if count > 1), "names of two files")


def test_every_event_has_one_tag() -> None:
    """Each event class of the machines is in `codec.TAGS`, and nothing else is. An output is one to whoever reads it,
    whether an agent here said it or an executor elsewhere."""
    events = [event for room in DECIDERS for event in classes_under(room, "events")]

    assert set(events) == set(codec.TAGS)
    assert len(events) == len(set(events))
    twice = {tag for tag, count in Counter(codec.TAGS.values()).items() if count > 1}
    nothing(twice - {"turn.output"}, "tags used twice")


def test_tags_are_noun_and_past() -> None:
    """A tag on the wire is `noun.past`, in small letters."""
    odd = [tag for tag in codec.TAGS.values() if not re.fullmatch(r"[a-z]+\.[a-z]+(_[a-z]+)*", tag)]

    assert odd == []


def test_every_event_of_a_turn_has_its_place_in_the_table() -> None:
    """No event of a turn is outside of `LEGAL`: a missing key while folding means a corrupt log."""
    in_table = {event for row in turn.LEGAL.values() for event in row}

    assert in_table == set(turn.TurnEvent.__args__)
    assert set(turn.LEGAL) == set(turn.TurnPhase)


def test_every_event_of_a_row_has_its_place_in_the_table() -> None:
    """The same for the durable queue."""
    in_table = {event for row in dispatch.LEGAL.values() for event in row}

    assert in_table == set(dispatch.DispatchEvent.__args__)


def test_every_event_of_a_worker_has_its_place_in_the_table() -> None:
    """The same for workers."""
    in_table = {event for row in worker.LEGAL.values() for event in row}

    assert in_table == set(worker.WorkerEvent.__args__)
    assert set(worker.LEGAL) == {None, *worker.Status}


def test_every_method_has_members_a_right_and_a_handler() -> None:
    """The three tables of the websocket agree; `initialize` is the connection's own."""
    assert set(protocol.METHODS) == set(access.METHODS)
    assert set(protocol.METHODS) - {"initialize"} == set(methods.HANDLERS)
    assert set(protocol.METHODS) >= methods.MUTATING


# reasons and limits


def test_every_reason_is_used() -> None:
    """A code that nothing says is a promise without a keeper."""
    texts = [module.text for module in product() if module.name != "core/reasons.py"]
    said = {reason for reason in Reason if _named(rf"\bReason\.{reason.name}\b|\"{reason.value}\"", texts)}

    nothing((reason.value for reason in set(Reason) - said), "reasons that nothing says")


def test_every_reason_is_named_in_a_test() -> None:
    """A code that no test names is a guess. By its member, as a quoted word, or bare where it cannot be another."""
    texts = list(other_tests().values())
    tested = set()
    for reason in Reason:
        bare = rf"|\b{reason.value}\b" if "_" in reason.value else ""
        if _named(rf"\bReason\.{reason.name}\b|[\"'`/]{reason.value}[\"'`]{bare}", texts):
            tested.add(reason)

    nothing((reason.value for reason in set(Reason) - tested), "reasons that no test names")


def _named(pattern: str, texts: list[str]) -> bool:
    wanted = re.compile(pattern)
    return any(wanted.search(text) for text in texts)


def test_reasons_are_words_and_their_kind_fits() -> None:
    """One code each; deferred ones are temporary, ends and notices are no errors."""
    assert len({reason.value for reason in Reason}) == len(Reason)
    for reason in Reason:
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", reason.value), reason
        assert reason.temporary or reason.kind is not Kind.DEFERRED, reason
        assert not reason.temporary or reason.kind not in (Kind.ENDING, Kind.NOTICE), reason


def limits_read() -> set[str]:
    """Fields of `Limits` that the source reads: as an attribute, in a text, or made of the name of a lane."""
    texts = {module.name: module.text for module in product() if module.name != "core/limits.py"}
    names = {field.name for field in attrs.fields(Limits)}
    found = {name for name in names if any(re.search(rf"(\.|\"){name}\b", text) for text in texts.values())}
    for suffix in re.findall(r"\{name\}_(\w+)\"", texts["runtime/lanes.py"]):
        found |= {name for name in names if name.partition("_")[::2] in [(x, suffix) for x in LANES]}
    return found


LANES = ("control", "data", "telemetry")


def test_every_limit_holds_something() -> None:
    """A bound that nobody reads holds nothing."""
    nothing({field.name for field in attrs.fields(Limits)} - limits_read(), "limits that nothing reads")


def test_limits_have_their_unit_in_their_name() -> None:
    """`_ms`, `_s`, `_hours`, `_bytes`, `_items`, `_percent`; counts name the things and end in `_max` or `_min`."""
    units = re.compile(r"_(ms|s|hours|bytes|items|percent)(_max|_min|_cap|_base)?$|_max$|_attempts$")
    odd = [field.name for field in attrs.fields(Limits) if not units.search(field.name)]

    assert odd == []


# marks


def test_the_name_of_a_mark_is_a_literal_and_occurs_once() -> None:
    """A name in a report leads to one line."""
    names: Counter[str] = Counter()
    for module in product():
        if module.name == "core/marks.py":
            continue
        for _, node in module.nodes():
            if called(node) in ("marks.sometimes", "marks.buggify", "marks.point"):
                assert isinstance(node, ast.Call)
                name = node.args[-1]
                assert isinstance(name, ast.Constant) and isinstance(name.value, str), f"{module.name}:{node.lineno}"
                names[name.value] += 1

    assert [name for name, count in names.items() if count > 1] == []


# secrets


REVEALS = {
    "daemon/tokens.py": "checks and makes tokens",
    "daemon/sync_tokens.py": "checks and makes the tokens of live delivery",
    "daemon/keys.py": "makes keys of their text, writes the token file of the same user",
    "client/client.py": "sends the token of this client in `initialize`",
    "client/link.py": "sends the token of this client in the request for the upgrade",
    "cli/tokens.py": "prints a token that was asked for",
    "cli/reaching.py": "takes the local token of this user",
    "runtime/dispatch.py": "hashes the token of a claim, and gives it once to whoever claimed",
    "demo.py": "takes the local token of its own daemon",
}


def test_a_secret_is_revealed_in_named_rooms_only() -> None:
    """`reveal()` is the only way into a Secret; these rooms call it."""
    calls = places(lambda node: called(node).endswith(".reveal"))
    rooms = {place.partition(":")[0]: lines for place, lines in calls.items()}

    agree(rooms, REVEALS, "reveal")


# public names


PUBLIC = {name: getattr(turnlane, name) for name in turnlane.__all__ if name != "__version__"}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_a_public_name_says_what_it_is(name: str) -> None:
    """Every public name has a docstring of its own, and so has each public method of those that have any."""
    thing = PUBLIC[name]
    own = thing.__dict__.get("__doc__") if isinstance(thing, type) else thing.__doc__

    assert own and not own.startswith(f"{name}("), f"{name} has no docstring"
    if name in ("Runtime", "Session", "Turn", "TurnHandle"):
        silent = [
            member
            for member, value in vars(thing).items()
            if inspect.iscoroutinefunction(value) and not member.startswith("_") and not value.__doc__
        ]
        assert silent == []


def handles() -> list[type]:
    """What a host program or an agent holds, the client's included."""
    found = [turnlane.Runtime, turnlane.Session, turnlane.TurnHandle, turnlane.Turn]
    client = __import__("turnlane.client", fromlist=["Client"])
    for name in getattr(client, "__all__", ()):
        thing = getattr(client, name)
        if inspect.isclass(thing) and thing.__module__.startswith("turnlane.client"):
            found.append(thing)
    return found


UNLABELLED = {
    "Client.live": "the task of `connect`, started and cancelled there",
    "Client.leave": "the way out of `connect`, which bounds it",
    "Client.wait": "the second half of Client.ask, which is labelled",
}


def test_every_public_coroutine_says_what_a_cancel_leaves() -> None:
    """`@on_cancel` stands on each: all or nothing, safe to call again, or unusable afterwards."""
    silent = {
        f"{holder.__name__}.{name}"
        for holder in handles()
        for name, value in vars(holder).items()
        if inspect.iscoroutinefunction(value) and not name.startswith("_") and cancel_kind(value) is None
    }

    nothing(silent - set(UNLABELLED), "public coroutines without @on_cancel")
    nothing(set(UNLABELLED) - silent, "have their label by now")


def test_public_names_are_in_order_and_occur_once() -> None:
    """`__all__` is sorted and without repetition, so that a reader finds a name and a merge shows a twin."""
    assert turnlane.__all__ == sorted(set(turnlane.__all__))


def test_nothing_is_left_for_later_in_a_comment() -> None:
    """History goes to the commit, plans go to issues."""
    left = [module.name for module in modules() if re.search(r"#.*\b(TODO|FIXME|XXX)\b", module.text)]

    assert left == []
