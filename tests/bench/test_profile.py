"""What becomes of py-spy's looks. That it can look at all is a matter of the machine, and no test here."""

from __future__ import annotations

from bench.profile import inclusive, table

STACKS = [
    "run (/x/site-packages/trio/_core/_run.py:1);output (/y/src/turnlane/runtime/agent.py:9) 3",
    "run (/x/site-packages/trio/_core/_run.py:2);run (/x/site-packages/trio/_core/_run.py:3) 1",
    "_work (/x/a.py:4);WorkerThread._work (/x/site-packages/trio/_core/_thread_cache.py:5) 90",
]


def test_a_function_counts_once_a_look_however_often_it_is_on_the_stack_and_waiting_threads_do_not() -> None:
    found, looks = inclusive(STACKS)
    assert looks == 4
    assert found == {"trio/_core/_run.py:run": 4, "runtime/agent.py:output": 3}


def test_shares_become_microseconds_of_an_event() -> None:
    head, *rows = table(STACKS, 20.0)
    assert head == "20.0 us of processor time an event, 4 looks at busy threads"
    assert [row.split() for row in rows] == [
        ["100.0%", "20.00", "us", "trio/_core/_run.py:run"],
        ["75.0%", "15.00", "us", "runtime/agent.py:output"],
    ]
