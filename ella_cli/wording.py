"""What pydantic has against a value, in the words of the other errors."""

from __future__ import annotations

from pydantic_core import ErrorDetails

_NAMES_AND_VALUES = "must be names and values"
_LIST = "must be a list"
# Their own words name Python's types, or classes of ours.
_BY_KIND = {
    "dict_type": _NAMES_AND_VALUES,
    "mapping_type": _NAMES_AND_VALUES,
    "dataclass_type": _NAMES_AND_VALUES,
    "model_type": _NAMES_AND_VALUES,
    "list_type": _LIST,
    "tuple_type": _LIST,
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "missing": "is missing",
    "unexpected_keyword_argument": "is not known",
    "extra_forbidden": "is not known",
}


def plain(error: ErrorDetails) -> str:
    """The rest of a sentence that begins with the name of what is wrong: `must be a list`."""
    kind, message = error["type"], error["msg"]
    if kind == "value_error":
        return f"is wrong: {message.removeprefix('Value error, ')}"
    return _BY_KIND.get(kind) or message.replace("Input should", "must").replace(
        " be a valid", " be a"
    )
