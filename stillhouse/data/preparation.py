"""From a spec and a tokenizer to a prepared corpus: the one way in, for training, capture and the command line.

What was prepared before is found by its key (the sources' content, the tokenizer, the settings, the format's version)
and nothing is tokenised again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.data.cache import Cache, default_cache_dir
from stillhouse.data.dataset import FORMAT_VERSION, Prepared, open_prepared
from stillhouse.data.items import Encoded, Item
from stillhouse.data.shards import encode_shards
from stillhouse.data.sources import Source, resolve
from stillhouse.data.spec import DataSpec
from stillhouse.data.tokenize import DocumentTokenizer, chat_template
from stillhouse.data.writer import CorpusWriter, Layout
from stillhouse.errors import DataError
from stillhouse.vocabulary import tokenizer_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a preparation is: the source that is read, the number of those done and in all, and what was written."""

    source: str
    sources_done: int
    sources: int
    documents: int
    tokens: int


def check_sources(spec: DataSpec) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    """Return what the names of a corpus stand for, and those of its held-out part; nothing is read yet.

    Raises:
        DataError: a name that stands for nothing, as is well told before anybody waits for a teacher.
    """
    return resolve(spec.sources, spec), resolve(spec.held_out_sources, spec)


def prepare(
    spec: DataSpec,
    tokenizer: PreTrainedTokenizerBase | None,
    cache_dir: Path | str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Prepared:
    """Return a corpus as samples, preparing it where that has not been done before.

    Args:
        spec: what to read, and how.
        tokenizer: the tokenizer of teacher and student, as transformers loads it; None reads `.bin` shards alone, whose
            ids are then checked against no vocabulary and end no document by themselves.
        cache_dir: where prepared corpora are kept; by default in the user's cache folder.
        progress: called now and then while documents are tokenised; never if nothing is.

    Raises:
        DataError: a source, or what stands in it, that cannot be used; the message names it, the place, and a remedy.
    """
    from stillhouse.fingerprint import fingerprint, tokens_fingerprint

    cache = Cache(Path(cache_dir) if cache_dir is not None else default_cache_dir())
    sources, held_out = check_sources(spec)
    _check_effects(spec, (*sources, *held_out))
    tokens = () if tokenizer is None else tokenizer_tokens(tokenizer)
    content = [[source.content(cache.file_digest) for source in group] for group in (sources, held_out)]
    settings = spec.model_dump(mode="json", exclude={"sources", "held_out_sources", "chat_template"})
    key = fingerprint("prepared", FORMAT_VERSION, json.dumps([content, settings]), *_tokenizer_fields(tokenizer, spec))

    def make(folder: Path) -> None:
        encode = encode_shards if tokenizer is None else DocumentTokenizer(tokenizer, spec, len(tokens)).encode
        _write(folder, (sources, held_out), encode, layout, progress)

    layout = Layout(
        key=key,
        tokenizer_fingerprint=tokens_fingerprint(tokens) if tokens else "",
        vocabulary_size=len(tokens) or None,
        block_size=spec.block_size,
        held_out_fraction=spec.held_out_fraction,
        held_out_samples=spec.held_out_samples,
    )
    prepared, from_cache = cache.get_or_make(key, open_prepared, make)
    return dataclasses.replace(prepared, from_cache=from_cache)


def _write(
    folder: Path,
    groups: tuple[tuple[Source, ...], tuple[Source, ...]],
    encode: Callable[[Iterable[Item]], Iterator[Encoded]],
    layout: Layout,
    progress: Callable[[Progress], None] | None,
) -> None:
    num_sources = sum(map(len, groups))
    done = 0
    with CorpusWriter(folder) as writer:
        for number, group in enumerate(groups):
            if number and group:
                layout = dataclasses.replace(layout, held_out_from=writer.num_documents)
            for source in group:
                before = writer.num_tokens, writer.skipped_documents
                for encoded in encode(source.read()):
                    writer.add(encoded)
                    if progress is not None and encoded.last:
                        progress(Progress(source.name, done, num_sources, writer.num_documents, writer.num_tokens))
                if before == (writer.num_tokens, writer.skipped_documents):
                    raise DataError(f"{source.name} holds no text; remove it from the sources or give it content")
                done += 1
        writer.finish(layout)


def _check_effects(spec: DataSpec, sources: tuple[Source, ...]) -> None:
    """Refuse settings of one kind of file where there is none of it."""
    kinds = {source.kind for source in sources}
    for name, kind, what in (("boundary_token_id", "tokens", ".bin shards"), ("text_separator", "text", "text files")):
        if getattr(spec, name) is not None and kind not in kinds:
            raise DataError(f"{name} has no effect: there are no {what} among the sources; leave it out")


def _tokenizer_fields(tokenizer: Any, spec: DataSpec) -> tuple[str, ...]:
    """Return everything about a tokenizer that its ids, and the text that its template renders, depend on."""
    if tokenizer is None:
        return ()
    if tokenizer.is_fast:
        model = json.loads(tokenizer.backend_tokenizer.to_str())
        # What the last call asked for, not what the tokenizer is.
        for state in ("truncation", "padding"):
            model.pop(state, None)
    else:
        model = [type(tokenizer).__name__, *tokenizer_tokens(tokenizer)]
    special = {name: str(value) for name, value in sorted(tokenizer.special_tokens_map.items())}
    template = chat_template(tokenizer, spec) or ""
    return json.dumps(model, sort_keys=True), json.dumps(special), str(tokenizer("a")["input_ids"]), template
