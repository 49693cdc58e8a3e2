"""What an answer looks like to a question that names a method of an executor's protocol.

Such a question comes from an executor (an app server, a tool host) and its answer goes back to it, so the answer has
the shape that the method asks for, or it is none: an unreadable approval is never taken for an accept. Answers to
secret questions are handed on as they came and kept as their digest alone. Source: docs/dispatch.md (Questions of
executors).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import frozen

from ..core.canonical import sha256_hex

COMMAND_APPROVAL: Final = "item/commandExecution/requestApproval"
FILE_APPROVAL: Final = "item/fileChange/requestApproval"
USER_INPUT: Final = "item/tool/requestUserInput"
TOOL_CALL: Final = "item/tool/call"

DECISIONS: Final = ("accept", "acceptForSession", "decline", "cancel")
AMENDED: Final = "acceptWithExecpolicyAmendment"


@frozen
class Shape:
    """`kind` of the question; what its answer should be, for people; whether one fits, given what was asked."""

    kind: str
    expected: str
    fits: Callable[[Any, Any], bool]
    denial: Any = None
    """What stands for an answer when the deadline denies it."""


def _members(value: Any, *names: str) -> bool:
    return isinstance(value, dict) and set(value) == set(names)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value in DECISIONS


def _is_amended(value: Any) -> bool:
    if not _members(value, AMENDED) or not _members(value[AMENDED], "execpolicy_amendment"):
        return False
    amendment = value[AMENDED]["execpolicy_amendment"]
    return _texts(amendment) and bool(amendment)


def _file_approval(_: Any, answer: Any) -> bool:
    return _members(answer, "decision") and _is_word(answer["decision"])


def _command_approval(_: Any, answer: Any) -> bool:
    return _members(answer, "decision") and (_is_word(answer["decision"]) or _is_amended(answer["decision"]))


def _user_input(prompt: Any, answer: Any) -> bool:
    asked = {question["id"] for question in questions(prompt)}
    return (
        _members(answer, "answers")
        and isinstance(answer["answers"], dict)
        and set(answer["answers"]) <= asked
        and all(_members(given, "answers") and _texts(given["answers"]) for given in answer["answers"].values())
    )


def _is_content(value: Any) -> bool:
    texts = {"inputText": "text", "inputImage": "imageUrl"}
    if not isinstance(value, dict) or not isinstance(value.get("type"), str) or value["type"] not in texts:
        return False
    text = texts[value["type"]]
    return set(value) == {"type", text} and isinstance(value[text], str)


def _tool_call(_: Any, answer: Any) -> bool:
    return (
        _members(answer, "success", "contentItems")
        and isinstance(answer["success"], bool)
        and isinstance(answer["contentItems"], list)
        and all(map(_is_content, answer["contentItems"]))
    )


_DENIED: Final = {"decision": "decline"}
_WORDS: Final = ", ".join(DECISIONS)

SHAPES: Final[Mapping[str, Shape]] = {
    COMMAND_APPROVAL: Shape(
        "approval",
        f"{{decision}} with one of {_WORDS}, or {{{AMENDED}: {{execpolicy_amendment: [text, ...]}}}}",
        _command_approval,
        _DENIED,
    ),
    FILE_APPROVAL: Shape("approval", f"{{decision}} with one of {_WORDS}", _file_approval, _DENIED),
    USER_INPUT: Shape("input", "{answers: {<id of a question>: {answers: [text, ...]}}}", _user_input),
    TOOL_CALL: Shape(
        "input",
        "{success, contentItems} with items {type: inputText, text} or {type: inputImage, imageUrl}",
        _tool_call,
    ),
}
"""Methods whose answers have a shape. Another method is taken as it is, and answered as its kind is."""


def questions(prompt: Any) -> list[dict[str, Any]]:
    """The questions of a request for input, those without a readable id left out."""
    found = prompt.get("questions") if isinstance(prompt, dict) else None
    found = found if isinstance(found, list) else []
    return [one for one in found if isinstance(one, dict) and isinstance(one.get("id"), str)]


def accepts(answer: Any) -> bool:
    """Whether an answer to an approval says yes, in the words of whoever asked."""
    return answer == "accept" or (_command_approval(None, answer) and answer["decision"] not in ("decline", "cancel"))


def kept_answer(method: str | None, prompt: Any, answer: Any) -> Any:
    """The answer as the log has it. What was asked as a secret is a digest there, of each text by itself."""
    if method != USER_INPUT:
        return answer
    secret = {one["id"] for one in questions(prompt) if one.get("isSecret", False) is not False}
    return {
        "answers": {
            name: {
                "answers": [{"sha256": sha256_hex(text.encode(errors="surrogatepass"))} for text in given["answers"]]
            }
            if name in secret
            else given
            for name, given in answer["answers"].items()
        }
    }
