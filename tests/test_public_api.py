"""The public names and signatures. A change here is a change for users: note it in CHANGELOG.md."""

import importlib
import inspect
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

import fq_toolkit
from fq_toolkit.layers import FeatureQuantizer, QuantizerOutput

ROOT = Path(__file__).resolve().parents[1]

SIGNATURES = {
    "FeatureQuantizer": "(dim, num_codes, *, mode=None, strength=1.0, decay=None, commitment=None, eps=None, "
    "ema=None, init=None, revive=None, revive_by=None, update='training', update_every=1, precision='exact', "
    "channel_dim=None, nonfinite='skip', heads=1, codebook_dim=None, metric='euclidean', preset=None, "
    "process_group=None, device=None)",
    "QuantizerOutput": "(quantized, indices, loss, perplexity)",
    "ResidualQuantizer": "(dim, num_codes, *, num_levels, dropout=False, mode=None, strength=1.0, **options)",
    "VLNPretrainingHead": "(hidden_size, vocab_size, num_actions=36, *, action_mode='cls', tie_to=None, "
    "loss_weights=(1, 1))",
    "codebook_report": "(model)",
    "collect_commitment": "(model)",
    "commitment_loss": "(model)",
    "frozen": "(model)",
    "inject_latent": "(model, mode='memory', latent_size=32, *, slots=1, share_kv=True, projector='linear', "
    "layers=None, init_std=0.02, latent_dropout=0.0, check_finite=False, verify=True)",
    "load_latent": "(folder, *, projector=None, **options)",
    "quantize": "(x, codebook, *, mask=None, lengths=None, precision='exact', commitment=1.0, "
    "channel_dim=None)",
    "quantize_discriminator": "(model, *, layers, num_codes, example_inputs, **options)",
    "remove_latent": "(model)",
}
METHODS = {
    "forward": "(self, x, mask=None, lengths=None)",
    "quantize": "(self, x, mask=None, lengths=None)",
    "decode": "(self, indices)",
    "from_reference": "(state_dict, prefix='', *, layout=None, **options)",
    "from_encodec": "(state_dict, prefix='', **options)",
    "from_embedding": "(source, prefix='', **options)",
    "to_reference": "(self, prefix='')",
    "from_lucidrains": "(state_dict, prefix='', **options)",
    "to_lucidrains": "(self, prefix='')",
    "load_state_dict": "(self, state_dict, strict=True, assign=False)",
    "set_codebook": "(self, codebook)",
    "freeze_codebook": "(self)",
    "unfreeze_codebook": "(self)",
    "usage": "(self, *, moving=True)",
    "perplexity": "(self, *, moving=True)",
    "dead_codes": "(self)",
    "restarts": "(self)",
    "last_loss": "(self)",
}
# paper -> what is importable from its package, lazily
PAPERS = {
    "fqgan": [
        "Evaluation", "FAMILIES", "FQGANConfig", "GANTask", "ImageDataset", "ImageShape", "Sampler",
        "UGATITConfig", "UGATITTask", "UnpairedDataset", "evaluate_run", "frechet_distance",
        "load_dataset", "load_extractor", "load_released", "load_run", "load_translators",
        "load_unpaired", "preset", "quantizer_factory", "to_released", "train", "translate_folder",
    ],
    "prevalent": [
        "BatchedNavEnv", "BeamPath", "CameraState", "DataError", "FeatureStore", "FollowerAgent",
        "HannaScores", "MiniWorld", "NDHScores", "NavItem", "NavWorld", "Observation", "PathMetrics",
        "PrevalentConfig", "PrevalentModel", "PrevalentOutput", "R2RScores", "Rollout", "Scan", "Speaker",
        "Step", "TextCache", "Triplet", "VisibleViewpoint", "Vocabulary", "a2c_loss", "action_label",
        "angle_features", "augment", "beam_search", "check_disjoint", "check_items", "check_lengths",
        "collect_triplets", "draw_feature_mask", "imitation_loss", "load_hanna", "load_ndh",
        "load_predictions", "load_r2r", "load_triplets", "measure_paths", "move_camera", "place_camera",
        "retell", "rollout", "sample_paths", "save_predictions", "save_triplets", "score_hanna",
        "score_ndh", "score_r2r", "visible_viewpoints", "write_dialogs", "write_requests",
    ],
}  # fmt: skip
STATE = ["codebook", "ema_counts", "ema_sums", "num_updates", "initialized"]
COMMANDS = [
    "train", "evaluate", "plot", "sample", "codebook", "translate", "reconstruct", "interpolate", "analogy",
    "play", "classify", "plot-latents", "augment", "navigate", "score", "bench", "env",
]  # fmt: skip


def signature(value: Any) -> str:
    """Return names, kinds and defaults; annotations are mypy's business."""
    found = inspect.signature(value)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def test_names_are_those() -> None:
    assert sorted(fq_toolkit.__all__) == sorted([*SIGNATURES, "__version__"])


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_signature(name: str) -> None:
    assert signature(getattr(fq_toolkit, name)) == SIGNATURES[name]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_method_signature(name: str) -> None:
    assert signature(getattr(FeatureQuantizer, name)) == METHODS[name]


def test_output_and_state_have_these_fields() -> None:
    assert QuantizerOutput._fields == ("quantized", "indices", "loss", "perplexity")
    assert list(FeatureQuantizer(4, 8).state_dict()) == STATE


def test_every_name_is_loaded_from_where_it_is_defined() -> None:
    for name in SIGNATURES:
        assert getattr(fq_toolkit, name).__module__.startswith("fq_toolkit.layers."), name


def test_version_is_that_of_the_package() -> None:
    assert fq_toolkit.__version__ == metadata.version("fq-toolkit")


def test_only_dim_and_num_codes_are_positional() -> None:
    with pytest.raises(TypeError):
        FeatureQuantizer(4, 8, "regularize")  # type: ignore[misc]
    torch.manual_seed(0)
    assert FeatureQuantizer(4, 8).mode == "straight_through"


def test_the_command_line_offers_these_commands() -> None:
    from fq_toolkit import cli

    assert list(cli.COMMANDS) == COMMANDS
    child = subprocess.run(
        [sys.executable, "-m", "fq_toolkit", "--help"], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert child.returncode == 0
    assert len(child.stdout.splitlines()) <= 36, "the help must fit one screen"
    for name in COMMANDS:
        assert f"\n  {name}" in child.stdout


@pytest.mark.parametrize("paper", PAPERS)
def test_names_of_papers_are_those_and_say_what_they_are(paper: str) -> None:
    package = importlib.import_module(f"fq_toolkit.{paper}")
    assert sorted(package.__all__) == sorted(package._HOME) == sorted(PAPERS[paper])
    assert set(PAPERS[paper]) <= set(dir(package))
    for name in PAPERS[paper]:
        value = getattr(package, name)
        if name.isupper():  # a table
            assert vars(importlib.import_module(package._HOME[name]))[name] is value
            continue
        assert value.__name__ == name
        assert value.__module__ == package._HOME[name]
        assert value.__doc__


@pytest.mark.parametrize("paper", PAPERS)
def test_the_documentation_imports_from_the_package_of_a_paper(paper: str) -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        deep = re.findall(rf"from fq_toolkit\.{paper}\.\S+ import .*", page.read_text(encoding="utf-8"))
        assert not deep, page
