"""What a corpus is and how it becomes samples: the `data` part of a recipe, and the flags of every command that reads.

Each field's description is its help text on the command line and in the recipe's schema. Knows nothing of files or
tokenizers: what only they can tell is checked where they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from stillhouse.errors import ConfigurationError

HUB_SCHEME = "hub:"
BUILTIN_SCHEME = "builtin:"

SourceFormat = Literal["auto", "text", "jsonl", "parquet", "tokens"]
RecordForm = Literal["auto", "text", "messages", "prompt_completion"]


def _named(sources: tuple[str, ...]) -> tuple[str, ...]:
    if not all(source.strip() for source in sources):
        raise ValueError("a source must not be empty; name a file, a folder, a glob, hub:NAME or builtin:NAME")
    return sources


def _unescaped(text: str | None) -> str | None:
    # A command line cannot easily hold a newline: what looks like one is one.
    return text and text.replace(r"\n", "\n").replace(r"\t", "\t")


Sources = Annotated[tuple[str, ...], AfterValidator(_named)]


class DataSpec(BaseModel):
    """A corpus and its preparation."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    sources: Sources = Field(
        min_length=1,
        description="Files, folders, globs, hub:OWNER/NAME (a hub dataset) or builtin:pydoc-topics, in this order.",
    )
    format: SourceFormat = Field(
        default="auto",
        description="What the files hold; auto goes by their endings (.txt .md .rst, .jsonl .ndjson .json, .parquet, "
        ".bin; with .gz or .zst after them).",
    )
    dataset_config: str | None = Field(
        default=None, description="The configuration of a hub dataset, where it has several."
    )
    dataset_split: str | None = Field(
        default=None, description="The split of a hub dataset, such as train (the default) or 'train[:1%]'."
    )
    dataset_revision: str | None = Field(default=None, description="The commit, tag or branch of a hub dataset.")
    record: RecordForm = Field(
        default="auto",
        description="What a record of JSONL, Parquet or a hub dataset holds; auto goes by the column that is named "
        "below, else by those of the first record.",
    )
    text_column: str = Field(default="text", min_length=1, description="The column that holds a document's text.")
    messages_column: str = Field(
        default="messages", min_length=1, description="The column that holds a conversation: a list of {role, content}."
    )
    prompt_column: str = Field(default="prompt", min_length=1, description="The column that holds a prompt.")
    completion_column: str = Field(
        default="completion", min_length=1, description="The column that holds its completion."
    )
    text_separator: Annotated[str | None, AfterValidator(_unescaped)] = Field(
        default=None,
        min_length=1,
        description=r"What stands between two documents of a text file, e.g. \n\n or <|endoftext|>; without it a "
        "file is one document.",
    )
    prompts: Literal["chat", "plain"] = Field(
        default="chat",
        description="chat: a prompt and its completion go through the chat template as user and assistant; plain: they "
        "are put end to end.",
    )
    learn: Literal["assistant", "all"] = Field(
        default="assistant",
        description="Which tokens of conversations and completions are learnt: what the assistant says, or all. Plain "
        "text is learnt whole.",
    )
    chat_template: Path | None = Field(
        default=None, description="A file with a Jinja chat template, used instead of the tokenizer's own."
    )
    append_eos: bool = Field(
        default=True, description="End each text and each plain completion with the tokenizer's end-of-sequence token."
    )
    boundary_token_id: int | None = Field(
        default=None,
        ge=0,
        description="The id that ends a document in .bin shards; by default the tokenizer's end of sequence.",
    )
    block_size: int = Field(
        default=1024, ge=2, description="Tokens of a sample: documents are packed into blocks of this length."
    )
    held_out_fraction: float | None = Field(
        default=None, gt=0, lt=1, description="Hold this part of the tokens out of training, e.g. 0.05, for evaluation."
    )
    held_out_samples: int | None = Field(
        default=None, ge=1, description="Hold this many samples, at most, out of training, for evaluation."
    )
    held_out_sources: Sources = Field(
        default=(),
        description="Evaluate on these sources (of the same kinds) instead of a part of the training sources.",
    )

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> DataSpec:
        held_out = {
            "held_out_fraction": self.held_out_fraction,
            "held_out_samples": self.held_out_samples,
            "held_out_sources": self.held_out_sources,
        }
        named = [name for name, value in held_out.items() if value]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} are two ways to hold data out; give one")
        if not any(source.startswith(HUB_SCHEME) for source in (*self.sources, *self.held_out_sources)):
            for name in ("dataset_config", "dataset_split", "dataset_revision"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} has no effect without a hub dataset; name one as {HUB_SCHEME}OWNER/NAME")
        return self


def data_spec(values: Mapping[str, Any]) -> DataSpec:
    """Build a spec from named values, of which those that are None count as not given.

    Raises:
        ConfigurationError: a value that cannot be used; the message names the key, the value and what is wrong.
    """
    try:
        return DataSpec.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        raise ConfigurationError("; ".join(_complaint(fault) for fault in error.errors())) from error


def _complaint(fault: Any) -> str:
    name = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "missing":
        return f"{name} must be given: what to read"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{name}: {message}; got {fault['input']!r}" if name else message
