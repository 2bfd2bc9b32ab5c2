"""The model card: README.md of an artifact, with the front matter that the hub reads."""

from __future__ import annotations

import re
from typing import Any

from tasks.models.model_kind import AUTO_CLASSES, HeadKind, head_kind
from tasks.publish.cards import render_card
from tasks.publish.manifest import Manifest
from tasks.report import wording

PIPELINE_TAGS: dict[HeadKind, str] = {
    "causal_lm": "text-generation",
    "masked_lm": "fill-mask",
    "sequence_classification": "text-classification",
    "question_answering": "question-answering",
}
"""The hub's names of what a model is for."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def write_model_card(manifest: Manifest, store_uri: str) -> str:
    """Render the card of an artifact in a store; the same manifest gives the same bytes."""
    recipe = manifest.provenance.recipe
    export = next(e for e in recipe["exports"] if e["name"] == manifest.export)
    teacher, teacher_metrics = manifest.provenance.teacher, manifest.provenance.teacher_metrics
    assert teacher_metrics is not None  # whatever is gated was held against them
    return render_card(
        "model_card.md.jinja",
        manifest,
        store_uri,
        front_matter(manifest, export),
        auto_class=AUTO_CLASSES[head_kind(manifest.architecture)],
        provenance=manifest.provenance,
        teacher=teacher,
        teacher_bytes=4 * teacher.num_parameters,
        teacher_metrics=teacher_metrics,
        speedup=manifest.metrics.tokens_per_s / teacher_metrics.tokens_per_s,
        steps=[*map(wording.describe_step, recipe["steps"]), wording.describe_export(export)],
    )


def front_matter(manifest: Manifest, export: dict[str, Any]) -> dict[str, Any]:
    recipe = manifest.provenance.recipe
    done = {"prune": "pruned", "distill": "distilled"}
    kinds = [kind for step in recipe["steps"] for kind in done if step.get(kind)]
    tags = ["nightpress", *dict.fromkeys(done[kind] for kind in kinds)]
    if export["method"] != "none":
        tags += ["quantized", export["method"]]
    if export["format"] not in ("safetensors", *tags):
        tags.append(export["format"])
    library = manifest.load_check.loader.partition(",")[0]
    tag = PIPELINE_TAGS[head_kind(manifest.architecture)]
    matter: dict[str, Any] = {"library_name": library, "pipeline_tag": tag}
    if HUB_ID.fullmatch(recipe["teacher"]["model"]):
        matter["base_model"] = recipe["teacher"]["model"]
    if manifest.provenance.licence.name:
        matter["license"] = manifest.provenance.licence.name
    return matter | {"tags": tags}
