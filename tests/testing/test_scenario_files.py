"""Scenario files: what comes out is compared, what is malformed is named by its line, what is rewritten comes again."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from turnlane.testing.scenarios import Arguments, BadScenario, ScenarioDiffers, run_scenario

STORY = """\
# A basket is filled.

put apples count=3
----
3 apples

# It grows, and another one does not.
# Blank lines may be many.


put "ripe pears"
----
3 apples
1 ripe pears

bob: put bread
----
1 bread

empty
----

# So it ends.
"""


def put(state, arguments):
    basket = state.setdefault(arguments.subject, {})
    add(basket, *arguments.words, **arguments.named)
    return "\n".join(f"{count} {thing}" for thing, count in basket.items())


def add(basket, thing, count="1"):
    basket[thing] = basket.get(thing, 0) + int(count)


def empty(state, arguments):
    state.clear()
    return ""


VERBS = {"put": put, "empty": empty}


@pytest.fixture
def story(tmp_path):
    """Writes a story and gives its path."""

    def write(text):
        path = tmp_path / "story.txt"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_a_story_that_comes_as_it_is_told_passes_and_passes_again(story):
    path = story(STORY)
    for _ in range(2):
        run_scenario(path, VERBS)
    run_scenario(str(path), VERBS, rewrite=True)
    assert path.read_text() == STORY


def test_a_difference_is_shown_as_a_unified_diff_and_the_file_is_left_alone(story):
    wrong = STORY.replace("1 bread", "2 bread")
    path = story(wrong)
    with pytest.raises(ScenarioDiffers) as raised:
        run_scenario(path, VERBS)
    lines = str(raised.value).splitlines()
    assert lines[:2] == [f"--- {path}, as it is", f"+++ {path}, as it came out"]
    assert [line for line in lines[2:] if line[0] in "+-"] == ["-2 bread", "+1 bread"]
    assert path.read_text() == wrong


@pytest.mark.parametrize(
    "told",
    [
        STORY.replace("1 bread\n", ""),
        STORY.replace("1 bread\n", "2 bread\n3 more\n"),
        STORY.replace("empty\n----\n", "empty\n----\nsomething\n# which is no comment here\n"),
    ],
    ids=["nothing expected", "too much", "something expected of nothing"],
)
def test_a_rewrite_mends_what_is_expected_and_nothing_else(story, told):
    path = story(told)
    with pytest.raises(ScenarioDiffers):
        run_scenario(path, VERBS)
    run_scenario(path, VERBS, rewrite=True)
    assert path.read_text() == STORY
    run_scenario(path, VERBS)


def test_a_verb_without_an_output_has_nothing_below_its_rule(story):
    run_scenario(story("empty\n----\n"), VERBS)
    run_scenario(story("empty\n----\n\n# with a comment\nempty\n----\n"), VERBS)


def test_a_last_line_without_a_line_feed_is_accepted(story):
    run_scenario(story(STORY.removesuffix("\n")), VERBS)
    run_scenario(story("put a\n----\n1 a"), VERBS)
    with pytest.raises(ScenarioDiffers):
        run_scenario(story("put a\n----\n2 a"), VERBS)


def test_an_unknown_verb_names_the_known_ones_and_its_line(story):
    path = story(STORY.replace("empty", "burn"))
    with pytest.raises(BadScenario, match=r"story\.txt:20: no verb 'burn'; there are empty, put$"):
        run_scenario(path, VERBS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("put a\n1 a\n", r":1: after the command 'put a' a line ---- has to follow, found '1 a'"),
        ("put a\n---\n", r":1: after the command 'put a' a line ---- has to follow, found '---'"),
        ("# only\n\nput a\n", r":3: after the command 'put a' a line ---- has to follow, found the end of the file"),
        ("# only\r\nput a\r\n----\r\n1 a\r\n", r":2: the line ends with CRLF: save the file with"),
        ("\n----\nput\n", r":2: ---- without a command"),
        ("\n=put a\n----\n", r":2: '=put a' does not begin with a verb"),
        ("bob:put a\n----\n", r":1: 'bob:put a' does not begin with a verb"),
        ('\nput a "b\n----\n', r":2: '\"b' is neither name=value nor a word"),
        ('put a"b"\n----\n', r":1: 'a\"b\"' is neither"),
        ('put "\\q"\n----\n', r":1: \"\\q\" is not a JSON string"),
        ("put a count=1 count=2\n----\n", r":1: 'count' is given twice"),
        ("# nothing\n\n# is done\n", r":3: no command in it"),
        ("", r":1: no command in it"),
        (b"put a\n----\n1 a\n\nput \xff\n----\n", r":5: not UTF-8"),
    ],
)
@pytest.mark.parametrize("rewrite", [False, True])
def test_a_malformed_file_is_named_by_its_line_and_left_as_it_is(story, text, says, rewrite):
    path = story(text)
    before = path.read_bytes()
    with pytest.raises(BadScenario, match=r"story\.txt" + says):
        run_scenario(path, VERBS, rewrite=rewrite)
    assert path.read_bytes() == before


def test_arguments_come_in_order_by_name_and_with_a_subject(story):
    heard = []
    line = 'ann.b-1: say a two=2 "b c" four="d = \\"e\\"\\n\\u00e9" five= "six=6" x=y=z é 7=8'
    run_scenario(story(f"{line}\n----\n"), {"say": lambda state, arguments: heard.append(arguments) or ""})
    named = {"two": "2", "four": 'd = "e"\né', "five": "", "x": "y=z"}
    assert heard == [Arguments(("a", "b c", "six=6", "é", "7=8"), named, "ann.b-1")]


def test_an_error_inside_a_verb_says_which_line_it_was(story):
    with pytest.raises(TypeError) as raised:
        run_scenario(story("# A slip of the pen.\nput apples cuont=3\n----\n"), VERBS)
    assert raised.value.__notes__[0].endswith("story.txt:2: put apples cuont=3")


async def put_later(state, arguments):
    return "1 a"


@pytest.mark.parametrize(
    ("verb", "came"), [(put_later, "not coroutine"), (lambda state, arguments: 3, "not int")], ids=["async", "a number"]
)
def test_a_verb_that_returns_no_text_is_named(story, verb, came):
    with pytest.raises(TypeError, match=f"verb 'av' has to be a plain function that returns text.*{came}") as raised:
        run_scenario(story("ann: av 2\n----\n"), {"av": verb})
    assert raised.value.__notes__[0].endswith("story.txt:1: ann: av 2")


def test_a_verb_that_returns_none_says_nothing(story):
    run_scenario(story("av\n----\n"), {"av": lambda state, arguments: None})


def test_a_blank_line_in_an_output_is_refused_since_it_could_not_be_read_back(story):
    path = story("say\n----\n")
    with pytest.raises(BadScenario, match=r"story\.txt:1: 'say' returned a blank line"):
        run_scenario(path, {"say": lambda state, arguments: "a\n\nb"}, rewrite=True)
    assert path.read_text() == "say\n----\n"


def test_each_telling_has_a_state_of_its_own(story):
    made = []

    def state():
        made.append([])
        return made[-1]

    def note(state, arguments):
        state.append(arguments.words[0])
        return " ".join(state)

    path = story("note a\n----\n\nnote b\n----\n")
    run_scenario(path, {"note": note}, state=state, rewrite=True)
    run_scenario(path, {"note": note}, state=state)
    assert made == [["a", "b"]] * 3, "a rewrite tells the story twice"
    assert path.read_text() == "note a\n----\na\n\nnote b\n----\na b\n"


def test_what_comes_out_differently_each_time_is_not_written_down(story):
    path, numbers = story("count\n----\n"), itertools.count()
    with pytest.raises(ScenarioDiffers, match=r"story\.txt, told once\n.*told again\n(.|\n)*-0\n\+1"):
        run_scenario(path, {"count": lambda state, arguments: str(next(numbers))}, rewrite=True)
    assert path.read_text() == "count\n----\n"


LINES = st.text(st.characters(codec="utf-8", exclude_characters="\n"), min_size=1).filter(str.strip)


@given(st.lists(st.lists(LINES, max_size=4), min_size=1, max_size=4))
def test_whatever_a_verb_says_is_read_back_after_a_rewrite(tmp_path_factory, said):
    path = tmp_path_factory.mktemp("told") / "story.txt"
    path.write_text("".join(f"# number {n}\nsay number={n}\n----\nnot this\n\n" for n in range(len(said))))
    verbs = {"say": lambda state, arguments: "\n".join(said[int(arguments.named["number"])])}
    run_scenario(path, verbs, rewrite=True)
    run_scenario(path, verbs)
    kept = [block.split("\n----", 1)[1].removeprefix("\n") for block in path.read_bytes().decode().split("\n\n")[:-1]]
    assert kept == ["\n".join(lines) for lines in said]
