"""`make demo` itself, on the real weights: what it promises to show, it shows."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_SECONDS = 1500

# Run where neither Stillhouse nor its services can be imported: the export is an ordinary folder of transformers.
GENERATE = """
import sys
for name in ("stillhouse", "teacher_service", "student_worker"):
    sys.modules[name] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
batch = tokenizer("The import statement", return_tensors="pt")
text = tokenizer.decode(model.generate(**batch, max_new_tokens=8, do_sample=False)[0])
assert text.startswith("The import statement") and len(text) > len("The import statement"), text
"""


@pytest.mark.long
@pytest.mark.real_weights
@pytest.mark.timeout(LIMIT_SECONDS)
def test_a_real_model_teaches_a_smaller_one(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    argv = [sys.executable, "-m", "stillhouse", "demo", "--output-dir", str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "report.json").read_text())
    assert report["kl_after"] <= 0.2 * report["kl_before"]
    assert report["agreement_after"] >= 0.45
    assert report["perplexity_after"] <= 2.5 * report["perplexity_teacher"]
    assert report["cache_hit_ratio_second_pass"] >= 0.99
    assert report["peak_memory_gib"] < 8
    assert report["workers"] == 2

    export = Path(report["export_dir"])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    argv = [sys.executable, "-c", GENERATE, str(export.resolve())]
    generated = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert generated.returncode == 0, generated.stderr
