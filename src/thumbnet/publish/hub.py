"""Publish runs on the Hugging Face Hub with a model card. Needs the extra ``hub``."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import groupby, pairwise
from typing import Any

from thumbnet.batches.leaks import LEAKS_NAME
from thumbnet.data.correct import describe_corrections
from thumbnet.errors import RunError, printable
from thumbnet.files import as_json, read_whole
from thumbnet.models import count_parameters
from thumbnet.publish import label_card
from thumbnet.recipes.functions import AUGMENTATIONS, LOSSES
from thumbnet.recipes.networks import code_options, is_timm
from thumbnet.recipes.recipe import Recipe
from thumbnet.reports.summary import (
    NOTHING_MEASURED,
    describe_calibration,
    describe_continued,
    describe_measured_groups,
    describe_stop,
    ended_early,
    epochs_before,
    optimism,
    own_epochs,
)
from thumbnet.runs.environment import device_name, differences, resumed
from thumbnet.runs.folder import Run
from thumbnet.runs.summaries import BEST_ON_VAL, L2_BY_VAL, headline_key, headline_name
from thumbnet.runs.weights import WEIGHTS_NAME, hub_reason, import_hub, read_weights, weights_content
from thumbnet.runs.weights_info import public_name
from thumbnet.sources.known_names import HUB
from thumbnet.version import __version__

AS_THEY_ARE = ("environment.json", "metrics.jsonl", "metrics.csv")
LISTED_CLASSES = 100
MEASURED = """The accuracy was measured only on the split above. Expect a lower accuracy on pictures
from another source, and measure it there."""
NOT_MEASURED = "Measure it on your own pictures before you use it."
USE = """```sh
pip install './thumbnet[{extras}]'
thumbnet predict {option}{address} picture.jpg
```

```python
import thumbnet
{imports}
classifier = thumbnet.load_classifier("{address}"{model})
{answer}
```"""
ANSWER = 'print(classifier.predict("picture.jpg")[0].label)'
ONE_CLASS = """It assigns one of these classes to every picture, even to
pictures of something else."""
OWN_CODE = """

The network's own code is not in this repository. Its author calls it `{network}`.
Importing code runs it, so thumbnet never does that by itself: get the code, and name it as above."""
CARD = """---
{metadata}
---

# {title}

A {network} {what}, {trained} by thumbnet {version}.

## Use

Install thumbnet {version} or newer from a clone of its repository. With the clone in the folder `thumbnet`:

{use}

## Results

{results}

## Data

{data}, fingerprint `{fingerprint}`. {corrected}Classes: {names}.

## Intended use, and limits

Use it for pictures like those of the data above. {always} {limits} Expect more mistakes on
groups that are rare in the data. Its robustness to adversarial attacks was not tested.

## Training

{epochs} epochs, {seconds} s of training on {device}.
{repeatable}

```toml
{recipe}
```
"""


def push(run: Run, repository: str, *, private: bool = False, licence: str | None = None) -> str:
    """Publish a run with a model card, in one commit.

    It does not upload the checkpoint, nor ``run.json``, which holds local paths of the data. See
    :func:`published`.

    Args:
        run: a complete run.
        repository: ``OWNER/NAME`` or ``hf:OWNER/NAME``; created if it does not exist.
        private: make a new repository private. One that exists must be private already.
        licence: the licence of the weights, as the Hub names it, such as ``mit``.

    Returns:
        The address of the repository.

    Raises:
        RunError: the run is not complete, the repository is public although it should be ``private``, or the
            Hub refuses the upload or cannot be reached.
        MissingExtraError: huggingface_hub is not installed.
    """
    hub, name = import_hub(), repository.removeprefix(HUB)
    card = model_card(run, name, licence)
    api = hub.HfApi(library_name="thumbnet", library_version=__version__)
    add = hub.CommitOperationAdd
    changes = [add(file, content) for file, content in {"README.md": card.encode(), **published(run)}.items()]
    try:
        api.create_repo(name, private=private, exist_ok=True)
        if private and not api.repo_info(name).private:
            raise RunError(
                f"{name} exists and is public, so nothing was published. Make it private on its page on the "
                "Hub, name another repository, or leave out --private"
            )
        api.create_commit(name, changes, commit_message=f"Trained by thumbnet {__version__}")
    except RunError:
        raise
    except Exception as error:  # huggingface_hub raises many unrelated classes
        raise RunError(f"cannot publish {name}: {hub_reason(error)}") from None
    return f"{api.endpoint}/{name}"


def published(run: Run) -> dict[str, bytes]:
    """The contents of the run's files that are published, by name. No local folder is in them.

    The weights are those of the run, to the byte, unless an older version wrote a path into them.
    """
    weights, info = read_weights(run.weights_path)
    files = {
        WEIGHTS_NAME: weights_content(weights, info),
        "recipe.toml": _recipe(run).to_toml().encode(),
        "summary.json": as_json(_summary(run)).encode(),
    }
    return files | {name: read_whole(run.path / name) for name in AS_THEY_ARE if (run.path / name).is_file()}


def _summary(run: Run) -> dict[str, Any]:
    """The run's summary, in whose sentences pictures have no path beyond the data's folder.

    Pictures that ``--labels`` added have whole paths. The file of leaks has every name that may occur.
    """
    summary, leaks = run.summary, run.path / LEAKS_NAME
    if not leaks.is_file():
        return summary
    rows = [json.loads(line) for line in read_whole(leaks).decode().split("\n") if line]
    names = {one["name"] for row in rows for one in row["pictures"] if os.path.isabs(one["name"])}
    lines = []
    for line in (summary.get("repeats") or {}).get("lines", ()):
        for name in sorted(names, key=len, reverse=True):
            line = line.replace(printable(name), printable(os.path.basename(name)))
        lines.append(line)
    return {**summary, "repeats": {**summary["repeats"], "lines": lines}} if lines else summary


def _recipe(run: Run) -> Recipe:
    """The run's recipe, in which the initial weights and the folder of a table's pictures have no path."""
    recipe = run.recipe
    return replace(
        recipe,
        data=replace(recipe.data, images=public_name(recipe.data.images)),
        training=replace(recipe.training, init=public_name(recipe.training.init)),
    )


def model_card(run: Run, name: str, licence: str | None = None) -> str:
    """Write the README for the Hub: metadata, results, data, intended use and recipe."""
    hub = import_hub()
    summary, recipe = _summary(run), _recipe(run)
    weights, info = read_weights(run.weights_path)
    parameters = summary.get("parameters") or count_parameters(weights, info.model, len(info.class_names))
    data = info.source
    metadata = hub.ModelCardData(
        license=licence,
        library_name="thumbnet",
        pipeline_tag="image-classification",
        tags=["image-classification", "thumbnet", recipe.model.name],
        datasets=[data.removeprefix(HUB)] if data.startswith(HUB) else None,
        model_name=name.rpartition("/")[2],
        eval_results=_eval_results(hub, summary, data),
    )
    pre, classes = info.preprocessing, len(info.class_names)
    names = info.class_names[:LISTED_CLASSES]
    rest = classes - len(names)
    size = f"{pre.size[1]}x{pre.size[0]}"
    what = f"that classifies small pictures ({size} pixels)\ninto {classes} classes"
    return CARD.format(
        metadata=metadata.to_yaml(),
        title=name.rpartition("/")[2],
        use=_use(HUB + name, info.model.name, label_card.USE if info.multilabel else ANSWER),
        trained=_how_trained(run, recipe),
        network=f"{recipe.model.name} of {parameters:,} parameters",
        what=label_card.what_it_does(size, classes) if info.multilabel else what,
        always=label_card.LIMITS if info.multilabel else ONE_CLASS,
        version=info.thumbnet,
        results=_results(run, summary),
        limits=MEASURED if summary["accuracy"] is not None else NOT_MEASURED,
        data=data,
        fingerprint=info.fingerprint,
        corrected=f"{describe_corrections(summary['labels']).capitalize()}. " if "labels" in summary else "",
        names=", ".join(names) + (f", and {rest} more" if rest else ""),
        epochs=own_epochs(summary),
        seconds=f"{summary['seconds_training']:,.0f}",
        device=_device(run.environment),
        repeatable=_repeatable(run),
        recipe=recipe.to_toml().strip(),
    )


def _how_trained(run: Run, recipe: Recipe) -> str:
    """How the network was trained. Only the first run's recipe says with what a continued one began."""
    if epochs_before(run):
        return "trained"
    return "fine-tuned" if recipe.model.pretrained or recipe.training.init else "trained from scratch"


def _repeatable(run: Run) -> str:
    """What gives the same weights again."""
    continued = describe_continued(run)
    if continued is None and ended_early(run.summary):
        continued = "the training was ended early"
    if continued is None and run.settings.get("code_before"):
        continued = "the author's own code changed during the training"
    if continued is None:
        recipe = run.recipe
        named = ((LOSSES, recipe.training.loss), (AUGMENTATIONS, recipe.augment.custom))
        own = [f"the {functions.kind} `{name}`" for functions, name in named if functions.is_own(name)]
        code = f"\nThey need {' and '.join(own)}, whose code is not in this repository." if own else ""
        parts = [run.environment, *resumed(run.environment)]
        changes = [", ".join(differences(one, other)) for one, other in pairwise(parts)]
        if not any(changes):
            return f"The same recipe, data, seed and device give the same weights.{code}"
        resumed_with = "; then with ".join(filter(None, changes))
        return (
            f"The training was resumed with {resumed_with},\n"
            f"so the same recipe, data and seed give the same weights only to within rounding.{code}"
        )
    return f"{continued[0].upper()}{continued[1:]},\nso this recipe alone does not give the same weights."


def _device(environment: dict[str, Any]) -> str:
    """The devices in a run's environment, in order, as far as they are known."""
    names = [device_name(one) or "an unknown device" for one in (environment, *resumed(environment))]
    return ", then ".join(name for name, _ in groupby(names))


def _use(address: str, network: str, answer: str) -> str:
    """Say how to use the ``network`` published at ``address``.

    ``answer`` is the line of Python that prints a prediction.
    """
    extras = "train,hub,timm" if is_timm(network) else "train,hub"
    if not code_options(network):
        return USE.format(extras=extras, option="", address=address, imports="", model="", answer=answer)
    module, is_path, name = network.partition(":")
    option = f"--model-code {network if is_path else 'MODULE'} "
    imports = f"from {module} import {name}\n" if is_path else "import MODULE  # registers the network\n"
    model = f", model={name}" if is_path else ""
    used = USE.format(
        extras=extras, option=option, address=address, imports=imports, model=model, answer=answer
    )
    return used + OWN_CODE.format(network=network)


def _eval_results(hub: Any, summary: dict[str, Any], data: str) -> list[Any] | None:
    """Return the accuracies as the Hub's metadata; None if nothing was measured."""
    if summary["accuracy"] is None:
        return None
    return [
        hub.EvalResult(
            task_type="image-classification",
            dataset_type=data.removeprefix(HUB),
            dataset_name=data,
            dataset_split=summary["split"],
            metric_type=headline_name(summary),
            metric_name=name,
            metric_value=value,
        )
        for name, value in measures(summary).items()
    ]


def measures(summary: dict[str, Any]) -> dict[str, float]:
    """Names and values of a run's main measure, for the Hub's metadata; empty if it could not be measured."""
    key, name = headline_key(summary), headline_name(summary)
    plain = summary.get(f"{key}_plain")
    if summary[key] is None:
        return {}
    if summary["tta"] == "none" or plain is None:
        return {name: summary[key]}
    return {
        f"{name} (test-time augmentation {summary['tta']})": summary[key],
        f"{name} (without test-time augmentation)": plain,
    }


def _results(run: Run, summary: dict[str, Any]) -> str:
    """Write the card's table of accuracies, and sentences on how they were measured."""
    split = summary["split"]
    if summary["accuracy"] is None:
        return f"{NOTHING_MEASURED[0].upper()}{NOTHING_MEASURED[1:]}. One training, seed {run.recipe.seed}."
    low, high = (100 * bound for bound in summary["accuracy_interval"])
    lines = [
        "| split | accuracy | 95 % interval | loss | test-time augmentation |",
        "| --- | --- | --- | --- | --- |",
        f"| {split} | {100 * summary['accuracy']:.2f} % | {low:.2f} to {high:.2f} | {summary['loss']:.4f} "
        f"| {summary['tta']} |",
    ]
    if summary.get("multilabel"):
        lines = label_card.results_table(summary)
    elif summary["tta"] != "none" and summary.get("accuracy_plain") is not None:
        lines.append(f"| {split} | {100 * summary['accuracy_plain']:.2f} % | | | none |")
    scored = [line for line in run.metrics if f"{split}_accuracy" in line]
    optimistic = {measure: f"The {split} {measure} is {why}." for measure, why in optimism(run).items()}
    if headline_name(summary) in optimistic:
        chosen = optimistic[headline_name(summary)]
    elif summary["kept_by"] in (BEST_ON_VAL, L2_BY_VAL):
        what = "L2" if summary["kept_by"] == L2_BY_VAL else "The best epoch"
        chosen = f"{what} was chosen on a separate split; {split} was measured once."
    else:
        when = f"{len(scored)} time(s) during training" if scored else "once, at the end"
        chosen = f"The last epoch was kept; {split} was measured {when}."
    stop = describe_stop(summary)
    calibration = describe_calibration(summary)
    grouped = describe_measured_groups(summary)
    sentences = [f"One training, seed {run.recipe.seed}.", chosen]
    sentences += [f"{grouped[0].upper()}{grouped[1:]}."] if grouped else []
    sentences += [optimistic["F1"]] if "F1" in optimistic else []
    sentences += [f"The training {stop}."] if stop else []
    sentences += [f"{calibration[0].upper()}{calibration[1:]}."] if calibration else []
    notes = [*(summary.get("repeats") or {}).get("lines", ()), *summary.get("warnings", ())]
    return "\n".join(
        [*lines, "", " ".join(sentences), *(f"\n{text[0].upper()}{text[1:]}." for text in notes)]
    )
