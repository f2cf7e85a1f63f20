"""Writes text to train on, one document a line, into the image: the help texts that ship with CPython."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from pydoc_data.topics import topics

target = Path(sys.argv[1])
target.parent.mkdir(parents=True, exist_ok=True)
target.write_text("".join(json.dumps({"text": text}) + "\n" for _, text in sorted(topics.items())), encoding="utf-8")
