"""What docs/store-format.md shows runs as it stands, on a store of the version that it describes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import pytest
import typer

from stillhouse.cli.main import build_app
from stillhouse.encodings import Candidates, Dense, Hidden, Sampled, TopK
from stillhouse.store.columns import payload_schema, sample_schema
from stillhouse.store.manifest import FORMAT_VERSION, Manifest, Shard, StorePlan
from tests.unit.store.small_store import make_store, small_corpus

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "store-format.md").read_text(encoding="utf-8")
BLOCKS = [str(block) for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)]
SQL = [str(block) for block in re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)]


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_store(tmp_path / "store", small_corpus(tmp_path / "corpus"), Sampled(50))
    return tmp_path / "store"


@pytest.mark.parametrize("index", range(len(BLOCKS)))
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_every_block_runs(index: int, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(BLOCKS[index], names)  # noqa: S102 - the page's own lines
    assert capsys.readouterr().out


def test_the_plain_reader_finds_the_sample_that_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    exec(BLOCKS[0], {})  # noqa: S102 - the page's own lines
    assert capsys.readouterr().out.startswith("5 [")


def test_the_query_runs() -> None:
    assert len(duckdb.execute(SQL[0]).fetchall()) == 10


def test_every_column_and_field_stands_on_the_page() -> None:
    assert f"# The store format, version {FORMAT_VERSION}" in PAGE
    encodings = (Sampled(1), TopK(1), Dense(), Hidden(), Candidates())
    schemas = [sample_schema(), *(payload_schema(encoding) for encoding in encodings)]
    columns = {name for schema in schemas for name in schema.names}
    fields = set(Manifest.model_fields) | set(Shard.model_fields)
    own = {"format_version", "writer", "teacher", "encoding", "temperature", "vocabulary_size", "corpus", "block_size"}
    assert own < set(StorePlan.model_fields)
    missing = {name for name in columns | fields | own if f"`{name}" not in PAGE and f"{name}," not in PAGE}
    assert missing - {"positions"} == set()


def test_every_verb_stands_on_the_page() -> None:
    group = typer.main.get_command(build_app()).commands["store"]  # type: ignore[attr-defined]  # groups of commands
    named = set(re.findall(r"`stillhouse store ([a-z]+)", PAGE))
    assert named == set(group.commands)
