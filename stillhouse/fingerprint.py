"""Names for content: two things have the same fingerprint iff every bit that matters is the same.

All are BLAKE2b-128 (RFC 7693) as 32 hexadecimal digits. Fields are framed with their lengths before they are
hashed, so that no two different lists of fields give the same bytes. torch is imported only where tensors are hashed:
who makes cache keys alone is spared its second and its hundreds of megabytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from stillhouse.encodings import Candidates, Dense, Encoding, Hidden, Sampled, TopK
from stillhouse.request import Sequence

if TYPE_CHECKING:
    from torch import Tensor

DIGEST_BYTES = 16

CACHE_KEY_VERSION = 2
"""Part of every cache key: raise it when the meaning of a key or the bytes of a payload change."""


def fingerprint(*fields: str | bytes | float) -> str:
    """Return the fingerprint of a list of fields; their types and boundaries count."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for field in fields:
        data = field if isinstance(field, bytes) else repr(field).encode()
        digest.update(f"{type(field).__name__}:{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()


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
    digest = fingerprint(
        "cache",
        CACHE_KEY_VERSION,
        backend,
        np.asarray(sequence.token_ids, dtype="<u4").tobytes(),
        # One document named by its length is the same request as one not named at all.
        np.asarray(sequence.segment_lengths if len(sequence.segment_lengths) > 1 else (), dtype="<u4").tobytes(),
        _positions_bytes(sequence),
        *_encoding_fields(encoding, sequence, float(temperature), vocabulary_size),
    )
    return bytes.fromhex(digest)


def _positions_bytes(sequence: Sequence) -> bytes:
    return np.asarray(sequence.position_indices(), dtype="<u4").tobytes()


def _encoding_fields(
    encoding: Encoding, sequence: Sequence, temperature: float, vocabulary_size: int
) -> tuple[str | bytes | float, ...]:
    match encoding:
        case Dense(value_type):
            return ("dense", value_type, vocabulary_size)
        case Hidden(value_type):
            return ("hidden", value_type)
        case TopK(k, value_type):
            return ("top_k", k, value_type, temperature, vocabulary_size)
        case Sampled(draws, seed):
            return ("sampled", draws, seed, temperature, vocabulary_size)
        case Candidates(token_ids, value_type):
            ids = np.asarray(token_ids or sequence.candidate_ids, dtype="<u4").tobytes()
            kind = "candidates" if token_ids else "position_candidates"
            return (kind, ids, value_type, temperature, vocabulary_size)
