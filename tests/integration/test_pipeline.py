"""The whole pipeline by its command: run, run again, pull, kill at every stage."""

import json
import subprocess
import sys
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import s3fs
import yaml

from tasks.digests import digest_folder
from tests.integration.pipeline import Workplace, artifact_digests, check_no_orphans
from tests.integration.swift_server import Swift

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"

pytestmark = pytest.mark.integration

LOAD_AND_SCORE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, text, window = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder).eval()
ids = [i for line in open(text) for i in tokenizer(json.loads(line)["text"]).input_ids]
total, count = 0.0, 0
with torch.inference_mode():
    for start in range(0, len(ids) - 1, window):
        part = torch.tensor([ids[start : start + window]])
        if part.shape[1] > 1:
            logits = model(part).logits[0, :-1].float()
            total += torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="sum").item()
            count += part.shape[1] - 1
print(total / count)
"""
"""What a stranger would write: nothing of nightpress in it."""


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, shared_recipe: Path
) -> tuple[Workplace, dict[str, Any]]:
    """A run that nobody disturbed."""
    place = Workplace(tmp_path_factory.mktemp("undisturbed"))
    return place, place.run_json("run", shared_recipe)


def test_a_run_publishes_every_export(finished: tuple[Workplace, dict[str, Any]]) -> None:
    place, record = finished
    assert record["status"] == "done"
    assert [e["outcome"] for e in record["exports"]] == ["published", "published"]
    titles = [row["title"] for row in record["models"]]
    assert titles == ["teacher", "1 prune", "2 distill", "2 from scratch", "int4", "int8"]
    assert all(stage["outcome"] == "computed" for stage in record["stages"])
    assert all(stage["nodes"] for stage in record["stages"])
    sizes = {row["title"]: row["model"]["num_parameters"] for row in record["models"]}
    assert sizes["1 prune"] == sizes["2 distill"] == sizes["int4"] < sizes["teacher"]
    runs = list((place.store / "runs" / "tiny").iterdir())
    assert {p.name for p in runs[0].iterdir()} == {"recipe.yaml", "run.json", "report.html"}


def test_the_second_run_is_all_cached(
    finished: tuple[Workplace, dict[str, Any]], shared_recipe: Path
) -> None:
    place, record = finished
    again = place.run_json("run", shared_recipe)
    assert again["status"] == "unchanged"
    assert all(stage["outcome"] == "cached" for stage in again["stages"])
    assert artifact_digests(again) == artifact_digests(record)


def test_a_prefect_server_is_told_of_every_stage(
    finished: tuple[Workplace, dict[str, Any]], shared_recipe: Path, prefect_server: str
) -> None:
    place, _ = finished
    watched = Workplace(place.folder, {"PREFECT_API_URL": prefect_server})
    watched.run("run", shared_recipe)
    (flow_run,) = ask(prefect_server, "flow_runs/filter")
    assert flow_run["name"] == "tiny" and flow_run["state_name"] == "Completed"
    assert flow_run["parameters"]["recipe"]["name"] == "tiny"
    states = {run["name"]: run["state_name"] for run in ask(prefect_server, "task_runs/filter")}
    for stage in ("corpus", "1 prune", "2 distill", "quantize int4", "evaluate int8"):
        assert states[stage] == "Cached", states
    assert states["gate int4"] == states["publish int4"] == "Completed"


def ask(api: str, what: str) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        f"{api}/{what}", data=b"{}", headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)
        return found


def test_plan_knows_what_is_stored(
    finished: tuple[Workplace, dict[str, Any]], shared_recipe: Path
) -> None:
    place, _ = finished
    stored = place.run_json("plan", shared_recipe)
    assert {stage["outcome"] for stage in stored["stages"]} == {"cached"}
    changed = place.run_json("plan", shared_recipe, "--set", "steps.1.distill.num_tokens=9000")
    outcomes = {stage["title"]: stage["outcome"] for stage in changed["stages"]}
    assert outcomes["1 prune"] == "cached" and outcomes["2 distill"] == "to compute"
    assert outcomes["quantize int4"] == "follows"


@pytest.mark.parametrize("export", ["int4", "int8"])
def test_a_pulled_artifact_gives_the_manifests_loss_in_plain_transformers(
    finished: tuple[Workplace, dict[str, Any]], text_file: Path, tmp_path: Path, export: str
) -> None:
    place, _ = finished
    dest = tmp_path / "model"
    place.run("pull", f"tiny/{export}", dest)
    manifest = json.loads((dest / "manifest.json").read_text())
    command = [sys.executable, "-I", "-c", LOAD_AND_SCORE, str(dest), str(text_file), "32"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    measured = float(printed.stdout.split()[-1])
    assert measured == pytest.approx(manifest["metrics"]["nats_per_token"], rel=0.01)


def test_show_and_list_name_the_artifacts(finished: tuple[Workplace, dict[str, Any]]) -> None:
    place, record = finished
    listed = place.run_json("list")["artifacts"]
    assert {a["export"]: a["digest"] for a in listed} == artifact_digests(record)
    assert place.run_json("show", "tiny")["export"] == "int4"
    assert "no artifacts of recipe" in _error(place, "show", "absent")


def test_people_decide_what_a_channel_serves(finished: tuple[Workplace, dict[str, Any]]) -> None:
    place, record = finished
    assert place.run_json("runs", "tiny")["runs"][-1]["run_id"] == record["run_id"]
    promoted = place.run_json("promote", "tiny/int4", "--channel", "stable", "--why", "tried it")
    assert promoted["digest"] == artifact_digests(record)["int4"]
    again = _error(place, "promote", "tiny/int4", "--channel", "stable", "--why", "again")
    assert "already" in again
    assert "no earlier artifact" in _error(place, "rollback", "tiny/int4@stable", "--why", "no")


def _error(place: Workplace, *arguments: str) -> str:
    process = place.start(*arguments)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in err
    return err


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(
    finished: tuple[Workplace, dict[str, Any]], shared_recipe: Path, tmp_path: Path
) -> None:
    """kill -9 of the driver once in every stage; each rerun starts where the last one died."""
    _, undisturbed = finished
    place = Workplace(tmp_path)

    def begun(stage: str) -> bool:
        return any((place.store / "stages" / stage).glob("*/*"))

    family = []
    for stage in ("evaluate", "source", "prune", "distill", "quantize"):
        family += place.kill_when(partial(begun, stage), "run", shared_recipe)
    artifacts = place.store / "artifacts"
    family += place.kill_when(lambda: any(artifacts.rglob("*.safetensors")), "run", shared_recipe)
    for manifest in artifacts.rglob("manifest.json"):  # a quick machine may have published one
        assert digest_folder(manifest.parent / "files") == manifest.parent.name, "half-published"

    record = place.run_json("run", shared_recipe)
    assert artifact_digests(record) == artifact_digests(undisturbed)
    models = {row["title"]: row["model"]["digest"] for row in record["models"]}
    assert models == {row["title"]: row["model"]["digest"] for row in undisturbed["models"]}
    check_no_orphans(family)


def test_a_bucket_holds_the_same_bytes_as_a_folder(
    finished: tuple[Workplace, dict[str, Any]],
    shared_recipe: Path,
    swift: Swift,
    prefect_server: str,
    tmp_path: Path,
) -> None:
    """One full run against a real S3 server."""
    _, on_disk = finished
    fs = s3fs.S3FileSystem(
        endpoint_url=swift.environment["AWS_ENDPOINT_URL"],
        key=swift.environment["AWS_ACCESS_KEY_ID"],
        secret=swift.environment["AWS_SECRET_ACCESS_KEY"],
        config_kwargs={"s3": {"addressing_style": "path"}},
    )
    fs.call_s3("create_bucket", Bucket="pipeline")
    extra = {"NIGHTPRESS_STORE": "s3://pipeline/team", "PREFECT_API_URL": prefect_server}
    place = Workplace(tmp_path, swift.environment | extra)
    record = place.run_json("run", shared_recipe)
    assert record["status"] == "done"
    assert artifact_digests(record) == artifact_digests(on_disk)
    place.run("pull", "tiny", tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert manifest["digest"] == artifact_digests(record)["int4"]

    wrong = Workplace(tmp_path, place.extra | {"AWS_SECRET_ACCESS_KEY": "wrong"})
    told = _error(wrong, "run", str(shared_recipe))
    assert "refused" in told


@pytest.mark.slow
def test_the_quickstarts_gate_refuses_the_pruned_model_before_distillation(
    prefect_server: str, tmp_path: Path
) -> None:
    """The shipped recipe without its distill step: the same limits, exit 3, nothing published."""
    place = Workplace(tmp_path, {"PREFECT_API_URL": prefect_server})
    prune = yaml.safe_load(QUICKSTART.read_text())["steps"][0]
    record = place.run_json(
        "run",
        QUICKSTART,
        *("--set", f"steps={json.dumps([prune])}", "--set", "comparisons=[]"),
        expect=3,
    )
    assert record["status"] == "refused"
    assert {export["outcome"] for export in record["exports"]} == {"refused"}
    assert not (place.store / "artifacts").exists() and not (place.store / "channels").exists()
    check = record["exports"][0]["gate"]["checks"][0]
    assert check["difference"]["lower"] > check["limit"], "refused, but not for its loss"
