"""Does a store fit the run that is to learn from it? Whatever differs is refused, with both sides named.

What a store was made with stands in its manifest: no answer is read here.
"""

from __future__ import annotations

from typing import Any

import structlog

from stillhouse.data import Prepared
from stillhouse.encoding_choice import AUTO
from stillhouse.encoding_text import format_encoding, parse_encoding
from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.errors import ConfigurationError
from stillhouse.fingerprint import tokens_fingerprint
from stillhouse.store import Store
from stillhouse.store.teacher import StoreTeacher
from stillhouse.vocabulary import tokenizer_tokens
from student_worker.recipe.checks import HELD_OUT_KEYS, given_of
from student_worker.recipe.schema import Recipe

_log = structlog.get_logger(__name__)


def check_stored(recipe: Recipe, stored: StoreTeacher) -> None:
    """Check, before anything is prepared or loaded, what the recipe asks of a store.

    Raises:
        ConfigurationError: its answers have another form than is learnt from, its samples another length, or a key of
            the recipe has no effect with it.
    """
    store, encoding = stored.store, stored.encoding
    asked = _asked(recipe.encoding, encoding)
    # N is compared once the student is known; whatever it will be, hidden states and logits are cut to it.
    if words := stored.difference(asked, stored.temperature, stored.vocabulary_size):
        raise ConfigurationError(f"the store {store.address} does not fit: {words}; {_remedy(asked, encoding)}")
    if isinstance(asked, Sampled | TopK | Candidates) and recipe.temperature != stored.temperature:
        raise ConfigurationError(
            f"the store {store.address} does not fit: temperature {recipe.temperature:g} is asked for, and it holds "
            f"{format_encoding(encoding)} at {stored.temperature:g}; {_remedy(asked, encoding)}"
        )
    if recipe.loss != "forward_kl" and not isinstance(asked, Dense | Hidden):
        raise ConfigurationError(
            f"loss {recipe.loss} needs the teacher's whole distribution, and the store {store.address} holds "
            f"{format_encoding(encoding)}; take loss: forward_kl, or a store of hidden or dense"
        )
    if given_of(recipe, ("top_k_tail",)) and not isinstance(asked, TopK | Candidates):
        raise ConfigurationError(
            f"top_k_tail has no effect: the store {store.address} holds {format_encoding(encoding)}"
        )
    if recipe.reads_store:
        _check_samples(recipe, store)
    elif recipe.data.block_size != store.train.block_size:
        raise other_blocks(recipe.data.block_size, store)


def check_size(stored: StoreTeacher, vocabulary_size: int) -> None:
    """See that a store's answers cover the ids that student and teacher share.

    Raises:
        ConfigurationError: they cover others.
    """
    if words := stored.difference(stored.encoding, stored.temperature, vocabulary_size):
        raise ConfigurationError(
            f"the store {stored.store.address} does not fit: {words}; capture for this student, or take a store of "
            "hidden, which fits any"
        )


def check_tokenizer(tokenizer: Any, store: Store) -> None:
    """See that a store's ids are of the run's tokenizer, where both are known.

    Raises:
        ConfigurationError: of another.
    """
    theirs = store.train.tokenizer_fingerprint
    if tokenizer is None or not theirs:
        return
    ours = tokens_fingerprint(tokenizer_tokens(tokenizer))
    if ours != theirs:
        raise ConfigurationError(
            f"the store {store.address} was made with another tokenizer: its fingerprint is {theirs}, and that of the "
            f"student's is {ours}; name the store's by --tokenizer, or capture with the student's"
        )


def compare_data(prepared: Prepared, store: Store, *, has_teacher: bool) -> None:
    """Compare a store with the sources that are named beside it.

    Raises:
        ConfigurationError: they are others, and no teacher is there to answer about them.
    """
    if prepared.train.block_size != store.train.block_size:
        raise other_blocks(prepared.train.block_size, store)
    for ours, theirs in ((prepared.train, store.train), (prepared.held_out, store.held_out)):
        if ours is None or (theirs is not None and ours.fingerprint == theirs.fingerprint):
            continue
        name = ours.name.replace("_", "-")
        found = "and the store has none" if theirs is None else f"and that of the store's {theirs.fingerprint}"
        words = f"the fingerprint of the {name} part of data.sources is {ours.fingerprint}, {found}"
        if not has_teacher:
            raise ConfigurationError(
                f"the store {store.address} was made of other data: {words}; drop data, and so train on the store's "
                "own samples, or name a teacher for what is missing"
            )
        _log.warning("store_is_of_other_data", reason=words, remedy="the teacher is asked for all that differs")


def stored_eval_encoding(text: str, stored: StoreTeacher, *, has_teacher: bool) -> Encoding | None:
    """Return what a store answers with about the text that is evaluated on, None where the teacher at work is asked.

    Raises:
        ConfigurationError: another is asked for, and there is no teacher.
    """
    if _asked(text, stored.encoding) == stored.encoding:
        has_part = stored.store.held_out is not None
        return stored.encoding if has_part or not has_teacher or text != AUTO else None
    if not has_teacher:
        raise ConfigurationError(
            f"eval_encoding {text} is asked for, and the store {stored.store.address} holds "
            f"{format_encoding(stored.encoding)}; drop it, or name a teacher"
        )
    return None


def eval_temperature(stored: StoreTeacher | None, encoding: Encoding) -> float:
    """Return the temperature that is evaluated at: 1, but for draws, which hold at the one they were made at."""
    if stored is None or encoding != stored.encoding or not isinstance(encoding, Sampled):
        return 1.0
    if stored.temperature != 1:
        _log.warning(
            "held_out_at_another_temperature",
            temperature=stored.temperature,
            reason="the store holds draws, which tell nothing of the distribution at T = 1",
        )
    return stored.temperature


def check_whole(store: Store) -> None:
    """See that a store holds all of its samples, which are to be read from it.

    Raises:
        ConfigurationError: it is one share of several.
    """
    if not store.manifest.is_whole:
        index, count = store.manifest.share
        raise ConfigurationError(
            f"the store {store.address} holds share {index}/{count} of its samples: name their sources (data), or join "
            "the shares by `stillhouse store merge`"
        )


def _check_samples(recipe: Recipe, store: Store) -> None:
    """Check a store whose own samples are trained on."""
    check_whole(store)
    if "block_size" in recipe.data.model_fields_set and recipe.data.block_size != store.train.block_size:
        raise other_blocks(recipe.data.block_size, store)
    if store.held_out is None and (unused := given_of(recipe, HELD_OUT_KEYS)):
        raise ConfigurationError(
            f"{unused[0]} has no effect: the store {store.address} has no held-out part; drop it, or capture with one"
        )


def _asked(text: str, stored: Encoding) -> Encoding:
    return stored if text == AUTO else parse_encoding(text)


def other_blocks(block_size: int, store: Store) -> ConfigurationError:
    """Return the error of a store that was packed otherwise."""
    return ConfigurationError(
        f"the store {store.address} was packed otherwise: into blocks of {store.train.block_size} tokens, and "
        f"data.block_size is {block_size}; give {store.train.block_size}, or capture with the other"
    )


def _remedy(asked: Encoding, stored: Encoding) -> str:
    if isinstance(stored, Hidden | Dense) and isinstance(asked, Sampled | TopK):
        return "make one of it by `stillhouse store derive`, or take encoding: auto"
    return "take what it holds, or a store that was captured so"
