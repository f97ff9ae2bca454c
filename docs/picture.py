"""Make the picture of README.md: train as the first command does, and keep the picture and its cost.

    python docs/picture.py            trains; writes images/digits.png, digits.json, README.md's caption
    python docs/picture.py --caption  only writes the caption, from digits.json

A test compares the caption with digits.json.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
IMAGE = ROOT / "docs" / "images" / "digits.png"
RECORD = IMAGE.with_suffix(".json")
COMMAND = "fq-toolkit train fqgan --fq regularize"
MARKS = re.compile(r"(<!-- picture:begin -->\n).*?(<!-- picture:end -->)", re.DOTALL)


def train() -> None:
    """Run the first command's last part in a temporary folder; keep its picture and its record."""
    sys.path.insert(0, str(ROOT))
    import torch

    from benchmarks.machine import commit, machine_name

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "digits"
        load = os.getloadavg()[0]
        began = time.perf_counter()
        words = [sys.executable, "-m", *COMMAND.replace("-", "_", 1).split(), "--out", str(run)]
        subprocess.run(words, check=True)
        seconds = time.perf_counter() - began
        IMAGE.parent.mkdir(exist_ok=True)
        shutil.copyfile(run / "samples.png", IMAGE)
        commit_name, changed = commit()
        record = {
            "command": COMMAND,
            "commit": commit_name + (" with changes" if changed else ""),
            "machine": machine_name("cuda" if torch.cuda.is_available() else "cpu"),
            "threads": torch.get_num_threads(),
            "load_before": round(load, 1),
            "torch": torch.__version__,
            "seconds": round(seconds, 1),
            "config": json.loads((run / "config.json").read_text()),
            "evaluation": json.loads((run / "evaluation.json").read_text()),
        }
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


def caption(record: dict[str, Any]) -> str:
    """Write the picture's Markdown from its record."""
    found = record["evaluation"]
    busy = f", beside other work (load {record['load_before']})" if record["load_before"] > 0.5 else ""
    text = (
        f"Drawn by the first command, one column per class: {found['step']} steps "
        f"in {record['seconds']:.0f} s on {record['machine']}{busy}, "
        f"fid[{found['extractor']}] {found['fid']:.1f} (real images: {found['floor']:.1f}), one seed; "
        f"[record](docs/images/{RECORD.name})."
    )
    return f"![Digits drawn by the generator](docs/images/{IMAGE.name})\n\n*{text}*\n"


def write_caption() -> None:
    """Put the caption between its marks in README.md."""
    readme = ROOT / "README.md"
    text = caption(json.loads(RECORD.read_text()))
    readme.write_text(
        MARKS.sub(lambda m: m[1] + text + m[2], readme.read_text(encoding="utf-8")), encoding="utf-8"
    )


if __name__ == "__main__":
    if "--caption" not in sys.argv[1:]:
        train()
    write_caption()
