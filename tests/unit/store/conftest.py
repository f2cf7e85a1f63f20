from __future__ import annotations

import pytest

from stillhouse.data import DataSpec, Prepared
from tests.unit.store.small_store import small_corpus

Corpus = tuple[Prepared, DataSpec]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """33 samples of 16 tokens, and 5 held out."""
    return small_corpus(tmp_path_factory.mktemp("corpus"))
