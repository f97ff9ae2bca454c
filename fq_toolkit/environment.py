"""A report on this machine, which `fq-toolkit env` prints: versions, device, usable kernel backends."""

import os
import platform
import subprocess
import sys
from importlib import metadata, util

import torch

from fq_toolkit import __version__
from fq_toolkit.kernels import ops

_CORE = ("numpy", "einops", "transformers", "safetensors", "triton")
_EXTRAS = {
    "train": (
        "accelerate",
        "tyro",
        "rich",
        "matplotlib",
        "pillow",
        "scipy",
        "scikit-learn",
        "sacrebleu",
        "rouge-score",
    ),
    "vln": ("networkx", "h5py"),
    "bench": ("vector-quantize-pytorch", "faiss-cpu"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "test": ("pytest", "hypothesis"),
    "docs": ("mkdocs-material", "mkdocstrings"),
}
_VARIABLES = (
    "FQ_TOOLKIT_BACKEND",
    "FQ_TOOLKIT_DATA",
    "TRITON_INTERPRET",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)


def _version(distribution: str) -> str | None:
    """Return the installed version of a distribution without importing it, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _device() -> str:
    """Name the accelerator with its compute capability and memory, or say that there is none."""
    if not torch.cuda.is_available():
        return "cpu (no CUDA device)"
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{d.name} (sm_{d.major}{d.minor}, {d.total_memory / 2**30:.0f} GiB)" for d in devices)


def _selected_backends() -> str:
    """Name the backend that computes on tensors of each device."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    try:
        return ", ".join(f"{ops.select_backend(torch.empty(0, device=d))} on {d} tensors" for d in devices)
    except (ValueError, RuntimeError) as error:
        return str(error)  # not raised: a wrong FQ_TOOLKIT_BACKEND is what a reader came here to see


def _extras() -> list[str]:
    """Return one line per extra: its versions, or what is missing and how to install it."""
    lines = []
    for extra, distributions in _EXTRAS.items():
        versions = {name: _version(name) for name in distributions}
        missing = [name for name, version in versions.items() if version is None]
        if missing:
            lines.append(
                f"[{extra}] without {', '.join(missing)}: pip install 'fq-toolkit[{extra}]' brings them"
            )
        else:
            lines.append(f"[{extra}] " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    return lines


def check_torchvision(timeout: float = 120.0) -> str:
    """Say whether torchvision can be imported beside this torch.

    This package never uses torchvision, but a torchvision built for another torch fails at import with a
    RuntimeError (not ImportError), and its mere presence then breaks torchmetrics and transformers. The
    import is tried in a child process, since a failed one leaves half-registered operators behind.

    Args:
        timeout: seconds the child process may take.

    Returns:
        One line: "not installed (good: nothing here needs it)", "works", or the error with the remedy.
    """
    if util.find_spec("torchvision") is None:
        return "not installed (nothing here needs it)"
    try:
        child = subprocess.run(
            [sys.executable, "-c", "import torchvision"], capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return f"its import did not end within {timeout:.0f} s"
    if child.returncode == 0:
        return "works"
    error = (child.stderr.strip().splitlines() or ["no message"])[-1]
    return (
        f"broken ({error}). It was built for another torch than {torch.__version__} and breaks torchmetrics "
        "and transformers by being there. fq-toolkit does not need it: pip uninstall torchvision"
    )


def report() -> str:
    """Describe this environment for a bug report or a benchmark caption.

    Returns:
        Several lines: versions, device, CPU capability and threads, one line per kernel backend ("usable" or
        why not), the state of torchvision, one line per extra, and the environment variables that matter.

    Example:
        >>> from fq_toolkit.environment import report
        >>> report().splitlines()[0]
        'fq-toolkit   0.1.0'
    """
    rows = [
        ("fq-toolkit", __version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
        ("torch", f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})"),
        ("core", ", ".join(f"{name} {_version(name) or 'not installed'}" for name in _CORE)),
        ("device", _device()),
        ("cpu", f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"),
        ("kernels", _selected_backends()),
        *((f"  {name}", status) for name, status in ops.backend_report().items()),
        ("torchvision", check_torchvision()),
        *(("extras" if i == 0 else "", line) for i, line in enumerate(_extras())),
        *(("variable", f"{name}={os.environ[name]}") for name in _VARIABLES if name in os.environ),
    ]
    return "\n".join(f"{label:<12} {value}".rstrip() for label, value in rows)
