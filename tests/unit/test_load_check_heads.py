"""The load gate of models with other heads: a fresh process makes the same logits."""

from pathlib import Path
from typing import Any

import pytest
import torch

from infra.storage import FileStore
from tasks.errors import CheckpointError
from tasks.models.checkpoint import describe_model, load_model
from tasks.publish.load_check import LoadEvidence, Probe, check_loads
from tasks.publish.manifest import parse_manifest
from tasks.publish.model_card import write_model_card
from tests.unit.artifact_factory import store_artifact, write_files
from tests.unit.encoder_factory import save_encoder

IDS = [[1, 6, 7, 2, 9, 2], [1, 5, 2]]
TYPES = [[0, 0, 0, 0, 1, 1], [0, 0, 0]]


def probe_of(folder: Path) -> Probe:
    model: Any = load_model(folder)
    logits = []
    with torch.inference_mode():
        for ids, types in zip(IDS, TYPES, strict=True):
            output = model(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([types]))
            parts = [output[key] for key in output if key.endswith("logits")]
            logits.append(torch.cat([part.flatten() for part in parts]).tolist())
    return Probe(ids=IDS, token_type_ids=TYPES, logits=logits)


@pytest.mark.parametrize(
    "architecture", ["BertForSequenceClassification", "BertForQuestionAnswering"]
)
def test_a_fresh_process_makes_the_same_logits(architecture: str, tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "model", architecture)
    evidence = check_loads(folder, describe_model(folder, str(folder)), probe_of(folder))
    assert evidence.architecture == architecture
    assert evidence.logit_error is not None and evidence.logit_error < 1e-4
    assert evidence.nats_per_token is None and evidence.num_windows == 2


def test_the_card_says_how_a_classifier_is_loaded(tmp_path: Path) -> None:
    store = FileStore(f"file://{tmp_path / 'store'}")
    manifest = store_artifact(store, write_files(tmp_path / "files", "a"))
    evidence = LoadEvidence(
        architecture="BertForSequenceClassification",
        logit_error=0.00125,
        num_windows=4,
        versions=manifest.load_check.versions,
    )
    classifier = manifest.model_copy(
        update={"architecture": evidence.architecture, "load_check": evidence}
    )
    card = write_model_card(classifier, store.uri)
    assert 'AutoModelForSequenceClassification.from_pretrained("DEST")' in card
    assert "pipeline_tag: text-classification" in card
    assert "the logits of 4 rows differ from those in memory by 0.0013 of the largest" in card
    assert parse_manifest(classifier.to_json(), "here") == classifier


def test_other_logits_are_refused(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "model", "BertForSequenceClassification")
    other = save_encoder(tmp_path / "other", "BertForSequenceClassification", seed=1)
    with pytest.raises(CheckpointError, match=r"expected the logits of the model in memory"):
        check_loads(folder, describe_model(folder, str(folder)), probe_of(other))
