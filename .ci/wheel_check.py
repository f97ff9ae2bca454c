"""Run against an installed wheel, outside the checkout, with nothing but the core dependencies.

    cd / && python <checkout>/.ci/wheel_check.py

`.ci/run` does so, with a copy. It is a script rather than a test because pytest is not installed there.
"""

import importlib.util
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata, resources
from pathlib import Path


def check(holds: bool, what: str) -> None:
    """Say what holds, or end with what does not."""
    if not holds:
        raise SystemExit(f"wheel check failed: {what}")
    sys.stdout.write(f"ok: {what}\n")


def main() -> None:
    """Check the package data, the metadata, the layer and the message of a missing extra."""
    import torch

    import fq_toolkit

    home = Path(fq_toolkit.__file__).resolve()
    check(
        home.is_relative_to(Path(sysconfig.get_path("purelib")).resolve()),
        f"imported from the wheel: {home.parent}",
    )
    check(fq_toolkit.__version__ == metadata.version("fq-toolkit"), f"version {fq_toolkit.__version__}")
    check(resources.files("fq_toolkit").joinpath("py.typed").is_file(), "py.typed is packaged")
    kernels = resources.files("fq_toolkit.kernels")
    check(
        {f.name for f in (kernels / "cpu").iterdir()}
        >= {"commit.h", "decode.h", "finish.h", "kernels.cpp", "lookup.h", "panels.h", "rows.h"},
        "the C++ source is packaged",
    )
    words = {f.name for f in resources.files("fq_toolkit.optimus.data").iterdir()}
    check(words >= {"grammar.json", "dialogs.json"}, "the embedded corpora are packaged")
    check(
        not any(importlib.util.find_spec(m) for m in ("torchvision", "tyro", "pytest")),
        "only core dependencies",
    )
    extras = set(metadata.metadata("fq-toolkit").get_all("Provides-Extra") or [])
    check(extras == {"train", "vln", "bench", "docs", "test", "onnx", "all"}, f"extras {sorted(extras)}")

    missing = [name for name in fq_toolkit.__all__ if not hasattr(fq_toolkit, name)]
    check(not missing, "every public name can be loaded")

    from fq_toolkit.kernels import ops

    fq = fq_toolkit.FeatureQuantizer(8, 16)
    x = torch.randn(4, 8, 5, 5)
    fq(x)
    out = fq.eval().quantize(x)
    check(torch.equal(fq.decode(out.indices), out.quantized), "the layer works")
    backend = ops.select_backend(x)
    check(backend == "native" or not shutil.which("c++"), f"CPU tensors run on the {backend} kernels")

    run = subprocess.run(
        [sys.executable, "-m", "fq_toolkit", "train", "fqgan"], capture_output=True, text=True
    )
    said = run.stdout + run.stderr
    check(
        run.returncode != 0 and "fq-toolkit[train]" in said,
        "training without its extra says how to install it",
    )
    check("Traceback" not in said, "and does so without a traceback")


if __name__ == "__main__":
    main()
