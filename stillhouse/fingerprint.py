"""Names for content: two things have the same fingerprint iff every bit that matters is the same.

All are BLAKE2b-128 (RFC 7693) as 32 hexadecimal digits. Fields are framed with their lengths before they are
hashed, so that no two different lists of fields give the same bytes. torch is imported only where tensors are hashed:
who makes cache keys alone is spared its second and its hundreds of megabytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as SequenceOf
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING

from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.request import Sequence

if TYPE_CHECKING:
    from torch import Tensor

DIGEST_BYTES = 16

CACHE_KEY_VERSION = 2
"""Part of every cache key: raise it when the meaning of a key or the bytes of a payload change."""


def fingerprint(*fields: str | bytes | float) -> str:
    """Return the fingerprint of a list of fields; their types and boundaries count."""
    return hashlib.blake2b(_framed(*fields), digest_size=DIGEST_BYTES).hexdigest()


def _framed(*fields: str | bytes | float) -> bytes:
    """Return the bytes of fields one after the other, each behind its type and its length."""
    parts: list[bytes] = []
    for field in fields:
        data = field if isinstance(field, bytes) else repr(field).encode()
        parts += (f"{type(field).__name__}:{len(data)}:".encode(), data)
    return b"".join(parts)


def weights_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return the fingerprint of named tensors: names, dtypes, shapes and bits, whatever their order or device.

    Tensors are hashed side by side (hashing lets go of the interpreter), each taken and copied to the host alone.
    """

    def one(name: str) -> str:
        tensor = tensors[name]
        return fingerprint(name, str(tensor.dtype), repr(tuple(tensor.shape)), _tensor_digest(tensor))

    with ThreadPoolExecutor(max_workers=4, thread_name_prefix="fingerprint") as pool:
        return fingerprint("weights", *pool.map(one, sorted(tensors)))


def _tensor_digest(tensor: Tensor) -> bytes:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(flat.numpy().data, digest_size=DIGEST_BYTES).digest()


def tokens_fingerprint(tokens: Iterable[str]) -> str:
    """Return the fingerprint of a tokenizer's tokens in the order of their ids."""
    return fingerprint("tokens", *tokens)


def backend_fingerprint(
    *, weights: str, compute_dtype: str, device_kind: str, torch_version: str, attention: str, mode: str
) -> str:
    """Return the fingerprint of everything about a teacher that the bytes of its answers depend on."""
    return fingerprint("backend", weights, compute_dtype, device_kind, torch_version, attention, mode)


def cache_key(
    backend: str, sequence: Sequence, encoding: Encoding, *, temperature: float, vocabulary_size: int
) -> bytes:
    """Return the key (16 bytes) under which the payload of one sequence is remembered.

    The temperature and N stand in it only where they change the bytes, so that a sweep of temperatures over DENSE
    or HIDDEN asks the teacher once. `vocabulary_size` is the effective N, never 0.
    """
    (key,) = cache_keys(backend, [sequence], encoding, temperature=temperature, vocabulary_size=vocabulary_size)
    return key


def cache_keys(
    backend: str, sequences: SequenceOf[Sequence], encoding: Encoding, *, temperature: float, vocabulary_size: int
) -> list[bytes]:
    """Return the key of each sequence, as `cache_key` does; what they have in common is written once."""
    before = _framed("cache", CACHE_KEY_VERSION, backend)
    after = _encoding_bytes(encoding, (), float(temperature), vocabulary_size)
    each_names_ids = isinstance(encoding, Candidates) and not encoding.token_ids
    keys = []
    for sequence in sequences:
        if each_names_ids:
            after = _encoding_bytes(encoding, sequence.candidate_ids, float(temperature), vocabulary_size)
        # One document named by its length is the same request as one not named at all.
        segments = sequence.segment_lengths if len(sequence.segment_lengths) > 1 else ()
        asked = _framed(_numbers(sequence.token_ids), _numbers(segments), _numbers(sequence.position_indices()))
        keys.append(hashlib.blake2b(before + asked + after, digest_size=DIGEST_BYTES).digest())
    return keys


def _numbers(values: SequenceOf[int]) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def _encoding_bytes(
    encoding: Encoding, candidate_ids: SequenceOf[SequenceOf[int]], temperature: float, vocabulary_size: int
) -> bytes:
    match encoding:
        case Dense(value_type):
            return _framed("dense", value_type, vocabulary_size)
        case Hidden(value_type):
            return _framed("hidden", value_type)
        case TopK(k, value_type):
            return _framed("top_k", k, value_type, temperature, vocabulary_size)
        case Sampled(draws, seed):
            return _framed("sampled", draws, seed, temperature, vocabulary_size)
        case Candidates(token_ids, value_type):
            ids = _numbers(token_ids or [*chain.from_iterable(candidate_ids)])
            kind = "candidates" if token_ids else "position_candidates"
            return _framed(kind, ids, value_type, temperature, vocabulary_size)
