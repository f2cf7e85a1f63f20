"""A record (a row, a JSON object) to what it holds: a text, a conversation, or a prompt with its completion.

Knows nothing of files: the caller says where a record stood.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from stillhouse.data.items import Conversation, Item, Message, Place, PromptCompletion, Text
from stillhouse.data.spec import DataSpec, RecordForm
from stillhouse.errors import DataError

_COLUMN_FIELDS: Final[dict[RecordForm, set[str]]] = {
    "text": {"text_column"},
    "messages": {"messages_column"},
    "prompt_completion": {"prompt_column", "completion_column"},
}


class RecordReader:
    """Reads the records of one source.

    Under `record: auto` a column that was named decides what they hold, else the first record's columns do.
    """

    def __init__(self, spec: DataSpec) -> None:
        self._spec = spec
        self._form: RecordForm = spec.record
        self._columns: dict[RecordForm, tuple[str, ...]] = {
            "text": (spec.text_column,),
            "messages": (spec.messages_column,),
            "prompt_completion": (spec.prompt_column, spec.completion_column),
        }
        named = [form for form, fields in _COLUMN_FIELDS.items() if fields & spec.model_fields_set]
        if self._form == "auto" and len(named) == 1:
            self._form = named[0]

    def columns(self, available: list[str], place: Place) -> tuple[str, ...]:
        """Return which of a table's columns are read.

        Raises:
            DataError: the columns that are needed are not there, or several forms fit.
        """
        if self._form == "auto":
            self._form = self._recognise(dict.fromkeys(available), place)
        missing = [column for column in self._columns[self._form] if column not in available]
        if missing:
            raise DataError(f"{place}: no column {missing[0]!r}; it has {_listed(available)}")
        return self._columns[self._form]

    def item(self, record: Any, place: Place) -> Item:
        """Return what a record holds.

        Raises:
            DataError: it is no object, lacks a column, or holds something else in it.
        """
        if not isinstance(record, Mapping):
            hint = "; a JSON array must be written as one object per line" if isinstance(record, list) else ""
            raise DataError(f"{place}: a record must be a JSON object; got {type(record).__name__}{hint}")
        if self._form == "auto":
            self._form = self._recognise(record, place)
        values = [self._value(record, column, place) for column in self._columns[self._form]]
        match self._form:
            case "messages":
                return Conversation(place, _messages(values[0], self._spec.messages_column, place))
            case "prompt_completion":
                return self._prompt_completion(values[0], values[1], place)
            case _:
                return Text(place, _text(values[0], self._spec.text_column, place))

    def _recognise(self, record: Mapping[str, Any], place: Place) -> RecordForm:
        fitting = [form for form, columns in self._columns.items() if all(column in record for column in columns)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise DataError(f"{place}: its columns fit {' and '.join(fitting)}; say which with record: {fitting[0]}")
        wanted = " or ".join(" with ".join(repr(column) for column in columns) for columns in self._columns.values())
        raise DataError(
            f"{place}: no column that holds text; expected {wanted}, got {_listed(list(record))}; "
            "name the right one, e.g. with text_column"
        )

    @staticmethod
    def _value(record: Mapping[str, Any], column: str, place: Place) -> Any:
        if column not in record:
            raise DataError(f"{place}: no key {column!r}; it has {_listed(list(record))}")
        return record[column]

    def _prompt_completion(self, prompt: Any, completion: Any, place: Place) -> Item:
        names = (self._spec.prompt_column, self._spec.completion_column)
        if isinstance(prompt, list) and isinstance(completion, list):
            before, after = _messages(prompt, names[0], place), _messages(completion, names[1], place)
            return Conversation(place, (*before, *after), learn_from=len(before))
        prompt, completion = _text(prompt, names[0], place), _text(completion, names[1], place)
        if self._spec.prompts == "plain":
            return PromptCompletion(place, prompt, completion)
        messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": completion})
        return Conversation(place, messages)


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:12])
    return f"{shown}{', ...' if len(names) > 12 else ''}" if names else "none"


def _text(value: Any, name: str, place: Place) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: {name} must be text; got {type(value).__name__}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{place}: {name} holds half of a surrogate pair at character {error.start}, which is no text; "
                "write the file with ensure_ascii=False, or mend the record"
            ) from error
    return value


def _messages(value: Any, name: str, place: Place) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: {name} must be a list of at least one message {{role, content}}; got {value!r:.80}")
    return tuple(_message(message, f"{name}[{index}]", place) for index, message in enumerate(value))


def _message(value: Any, name: str, place: Place) -> Message:
    if not isinstance(value, Mapping):
        raise DataError(f"{place}: {name} must be an object {{role, content}}; got {type(value).__name__}")
    for key in ("role", "content"):
        if key not in value:
            raise DataError(f"{place}: {name} has no {key}; it has {_listed(list(value))}")
    _text(value["role"], f"{name}.role", place)
    # A call of tools comes without content, and tables fill absent fields with null.
    if value["content"] is not None or not value.get("tool_calls"):
        _text(value["content"], f"{name}.content", place)
    return {key: entry for key, entry in value.items() if entry is not None or key == "content"}
