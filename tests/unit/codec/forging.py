"""Bytes that somebody else has had their hands on."""

from __future__ import annotations

import random
import struct

import xxhash

from stillhouse.payload_header import HEADER_BYTES

# Where the fields stand: of every header, and of an output head's body (of three weights and three biases, bfloat16).
_PLACES = {
    "magic": ("<I", 0),
    "version": ("<B", 4),
    "kind": ("<B", 5),
    "value_type": ("<B", 6),
    "reserved": ("<B", 7),
    "total": ("<Q", 8),
    "rows": ("<Q", 16),
    "width": ("<I", 24),
    "count": ("<I", 28),
    "temperature": ("<d", 32),
    "scale": ("<d", 48),
    "soft_cap": ("<d", 56),
    "first_weights": ("<I", 64),
    "last_biases": ("<I", -4),
}


def forge(data: bytes | bytearray, **fields: float) -> bytearray:
    """Set fields and mend the checksum, as an attacker or a faulty writer would."""
    forged = bytearray(data)
    for name, value in fields.items():
        form, place = _PLACES[name]
        struct.pack_into(form, forged, place, value)
    struct.pack_into("<Q", forged, 40, xxhash.xxh3_64_intdigest(forged[:40] + forged[48:]))
    return forged


def mutate(data: bytes, random_: random.Random) -> bytes:
    """Alter, cut, lengthen, or overwrite a field, one to four times."""
    altered = bytearray(data)
    for _ in range(random_.randint(1, 4)):
        match random_.randrange(4):
            case 0 if altered:
                altered[random_.randrange(len(altered))] = random_.randrange(256)
            case 1:
                del altered[random_.randrange(len(altered) + 1) :]
            case 2:
                place = random_.randrange(len(altered) + 1)
                altered[place:place] = random_.randbytes(random_.randint(1, 9))
            case _ if len(altered) >= HEADER_BYTES:
                start = random_.randrange(0, HEADER_BYTES - 8)
                altered[start : start + 8] = random_.choice([b"\xff" * 8, b"\0" * 8, random_.randbytes(8)])
            case _:
                pass
    return bytes(altered)
