"""The offline store: a teacher's answers about a corpus, in Parquet, kept for ever. docs/store-format.md.

`StoreWriter` fills one (see `stillhouse capture`), `open_store` reads one.
"""

from stillhouse.asking import asked_sequence
from stillhouse.errors import StoreError
from stillhouse.store.dataset import StoreDataset
from stillhouse.store.manifest import Manifest, Shard, StorePlan, TeacherIdentity
from stillhouse.store.reader import Store, StorePart, open_store
from stillhouse.store.rows import StoredSample
from stillhouse.store.writer import StoreWriter

__all__ = [
    "Manifest",
    "Shard",
    "Store",
    "StoreDataset",
    "StoreError",
    "StorePart",
    "StorePlan",
    "StoreWriter",
    "StoredSample",
    "TeacherIdentity",
    "asked_sequence",
    "open_store",
]
