"""Writes a comparison as a page of the documentation: what was asked, by which command, and what came of it."""

from __future__ import annotations

import os
import platform
import re
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from student_worker.comparison.outcome import verdict
from student_worker.comparison.table import markdown_table

IMAGES = "images"
WIDTH = 120


def write_pictures(curves: dict[str, str], folder: Path, prefix: str = "") -> list[Path]:
    """Write each curve as an SVG file; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, text in curves.items():
        files.append(folder / f"{prefix}{name}.svg")
        files[-1].write_text(text, encoding="utf-8")
    return files


def write_page(file: Path, outcome: dict[str, Any], curves: dict[str, str], command: str, recipe: str) -> None:
    """Write the page, and its pictures into `images` beside it.

    Args:
        file: the page.
        outcome: as `read_outcome` gives it.
        curves: as `draw_curves` gives them.
        command: what made it, as a reader would type it.
        recipe: the text of the recipe.
    """
    pictures = write_pictures(curves, file.parent / IMAGES, "comparison-")
    file.write_text(_page(outcome, [picture.name for picture in pictures], command, recipe), encoding="utf-8")


def _page(outcome: dict[str, Any], pictures: list[str], command: str, recipe: str) -> str:
    seeds = ", ".join(map(str, outcome["seeds"]))
    line = outcome["summary"][0]
    images = "\n\n".join(f"![{name.removesuffix('.svg')}]({IMAGES}/{name})" for name in pictures)
    parameters = outcome["student_parameters"]
    millions = f", {parameters / 1e6:.0f} million parameters" if parameters else ""
    question = _paragraph(f"""
        The same student, from the same start, on the same tokens in the same order: once with cross-entropy on the text
        alone (`alpha: 1`; the teacher is asked about nothing but the held-out part), and once through each encoding
        (`alpha: {outcome["alpha"]:g}`, `temperature: {outcome["temperature"]:g}`; `alpha` is the weight of
        cross-entropy and `1 - alpha` weighs KL). Before the first step all arms have the same held-out figures to the
        bit; the command refuses to compare them otherwise.""")
    setting = _paragraph(f"""
        Teacher {outcome["teacher"]}; student {outcome["student"]}{millions}; {line["steps"]:.0f} steps,
        {line["tokens"]:,.0f} tokens, seed {seeds}. Cross-entropy and KL in nats. Seconds are of training alone, waiting
        for the teacher's answers among them, evaluations left out; bytes a token are what came from the teacher.
        {_machine()}, {datetime.now(UTC):%Y-%m-%d}, stillhouse {outcome["version"]}.""")
    return f"""# Does distillation help?

{question}

{_paragraph(verdict(outcome))}

{markdown_table(outcome)}

{setting}

{images}

## The command

```console
$ {command}
```

with this recipe, and its teacher running (`stillhouse teacher serve`); an interrupted comparison goes on by the same
command. Everything that stands here, and each point of the curves, is in `comparison.json` in its folder.

```yaml
{recipe.strip()}
```
"""


def _paragraph(text: str) -> str:
    """Return the text in lines of at most `WIDTH` characters; what stands in backticks stays on one line."""
    whole = re.sub("`[^`]*`", lambda code: code[0].replace(" ", "\0"), " ".join(text.split()))
    return textwrap.fill(whole, WIDTH, break_long_words=False, break_on_hyphens=False).replace("\0", " ")


def _machine() -> str:
    cores = os.cpu_count()
    return f"{platform.system()} on {cores} cores ({platform.machine()})"
