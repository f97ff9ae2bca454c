"""The commands that look at the latents of a run by label: ``classify`` and ``plot-latents``."""

import sys
from pathlib import Path

from fq_toolkit.optimus.data.corpus import describe_skipped
from fq_toolkit.optimus.data.labels import load_labelled
from fq_toolkit.optimus.tasks.classification import latent_plot
from fq_toolkit.optimus.tasks.classification.runs import classify_run, write_classification
from fq_toolkit.optimus.tasks.command_line import check_seed, checkpoint_or_end
from fq_toolkit.optimus.tasks.vae.runs import load_model
from fq_toolkit.training.errors import require


def classify_command(run: Path, arguments: list[str]) -> int:
    """Run ``classify RUN``."""
    tyro = require("tyro", purpose="the command line")

    def classify(
        data: str = "grammar",
        valid: str | None = None,
        text_key: str = "text",
        label_key: str = "label",
        per_class: tuple[int, ...] = (1, 10, 100, 1000),
        seeds: int = 5,
        finetune_steps: int = 60,
        test_sentences: int = 2000,
        against: tuple[Path, ...] = (),
        seed: int = 0,
        checkpoint: str | None = None,
        out: Path | None = None,
    ) -> int:
        """Classify sentences from latents, with 1, 10, 100 ... labels per class.

        Logistic regressions on the latents of the run, on the sentence vectors of its encoder, of the same
        encoder with random weights and of other runs; then the same with the whole encoder fine-tuned. All
        get the same labelled sentences.

        Args:
            data: grammar; a table LABEL-tab-TEXT (.tsv); JSON lines (.jsonl); a folder of STEM.PART.LABEL
                files; or the beginning of the names of one file per label.
            valid: Sentences to measure with; by default those of the folder or grammar, or every twentieth.
            text_key: Where the text is in a JSON line.
            label_key: Where the label is in a JSON line.
            per_class: Labels per class.
            seeds: Repetitions, each with other labelled sentences.
            finetune_steps: Updates of each fine-tuning; 0 leaves fine-tuning out.
            test_sentences: Measure with so many.
            against: Other runs, for example of an autoencoder.
            seed: Of the order of the sentences.
            checkpoint: best, last or a step; by default the model at the end of the run.
            out: Beginning of the names of the files; by default classification in the run folder.
        """
        check_seed(seed)
        corpus = load_labelled(data, valid, text_key=text_key, label_key=label_key, seed=seed)
        if corpus.skipped:
            sys.stderr.write(describe_skipped(corpus.skipped) + "\n")
        curve = classify_run(
            run,
            corpus,
            against=against,
            per_class=per_class,
            seeds=seeds,
            finetune_steps=finetune_steps,
            test_sentences=test_sentences,
            checkpoint=checkpoint_or_end(checkpoint),
            report=_tell,
        )
        options = {
            "run": run.name, "data": data, "valid": valid, "against": [path.name for path in against],
            "seed": seed, "seeds": seeds, "per_class": list(per_class), "finetune_steps": finetune_steps,
        }  # fmt: skip
        files = write_classification(curve, corpus, out or run / "classification", options=options)
        sys.stdout.write(f"{curve}\n\n{', '.join(map(str, files))}\n")
        return 0

    return int(tyro.cli(classify, args=arguments, prog="fq-toolkit classify RUN"))


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def plot_latents_command(run: Path, arguments: list[str]) -> int:
    """Run ``plot-latents RUN``."""
    tyro = require("tyro", purpose="the command line")

    def plot_latents(
        data: str = "grammar",
        valid: str | None = None,
        text_key: str = "text",
        label_key: str = "label",
        sentences: int = 1000,
        seed: int = 0,
        checkpoint: str | None = None,
        out: Path | None = None,
    ) -> int:
        """Draw the latents of labelled sentences in the plane (t-SNE), coloured by label.

        Args:
            data: As in `classify`; grammar by default.
            valid: The sentences that are drawn; by default those kept for measuring.
            text_key: Where the text is in a JSON line.
            label_key: Where the label is in a JSON line.
            sentences: How many at most.
            seed: Of t-SNE and of the choice of the sentences.
            checkpoint: best, last or a step; by default the model at the end of the run.
            out: The PNG; by default latents.png in the run folder.
        """
        check_seed(seed)
        corpus = load_labelled(data, valid, text_key=text_key, label_key=label_key, seed=seed)
        target = out or run / "latents.png"
        vae = load_model(run, checkpoint=checkpoint_or_end(checkpoint))
        drawn = latent_plot.plot_latents(vae, corpus, target, sentences=sentences, seed=seed)
        sys.stdout.write(f"{target} ({drawn} sentences)\n")
        return 0

    return int(tyro.cli(plot_latents, args=arguments, prog="fq-toolkit plot-latents RUN"))
