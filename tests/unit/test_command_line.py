"""The command's face: help, messages, exit codes. Each call is a process of its own."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

NIGHTPRESS = str(Path(sys.executable).with_name("nightpress"))


def call(*arguments: str | Path, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [NIGHTPRESS, *map(str, arguments)],
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), "NIGHTPRESS_HOME": str(home / "state")},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_help_names_every_command_without_heavy_imports(tmp_path: Path) -> None:
    began = time.monotonic()
    done = call("--help", home=tmp_path)
    assert time.monotonic() - began < 10  # 0.4 s on an idle machine
    assert done.returncode == 0
    commands = "run plan doctor evaluate list show pull runs promote rollback gc init schema"
    for command in commands.split():
        assert command in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "absent.yaml"], "no recipe at absent.yaml"),
        (["run"], "Missing argument"),
        (["rum", "x"], "No such command"),
        (["run", "x", "--sett", "a"], "No such option"),
        (["pull", "Bad Ref!", "dest"], "expected RECIPE[/EXPORT]"),
        (["schema", "recipes"], "expected recipe or manifest"),
        (["list", "--store", "ftp://x"], "file://FOLDER or s3://"),
        (["evaluate", ".", "--text", "absent.jsonl"], "no config.json in"),
    ],
)
def test_bad_input_is_exit_2_and_one_message(
    tmp_path: Path, arguments: list[str], told: str
) -> None:
    done = call(*arguments, home=tmp_path)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr and "Traceback" not in done.stderr and done.stdout == ""


def test_init_writes_a_recipe_that_loads_but_for_its_files(tmp_path: Path) -> None:
    assert call("init", home=tmp_path).returncode == 0
    again = call("init", home=tmp_path)
    assert again.returncode == 2 and "is there already" in again.stderr
    told = call("plan", "recipe.yaml", home=tmp_path)
    assert told.returncode == 2 and "teacher.model: no folder" in told.stderr


def test_schemas_are_json(tmp_path: Path) -> None:
    recipe = json.loads(call("schema", home=tmp_path).stdout)
    assert recipe["schema_version"] == 1 and "teacher" in recipe["properties"]
    manifest = json.loads(call("schema", "manifest", home=tmp_path).stdout)
    assert "files" in manifest["properties"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("evaluation.text=absent.jsonl", "evaluation.text: no file"),
        ("cluster.ray=127.0.0.1:1", "no Ray cluster answers"),
        ("cluster.gpus_per_worker=1", "2 GPUs are asked for, 0 found"),
        ("steps.1.distill.batch_blocks=7", "batch_blocks must be a multiple"),
        ("publish.store=file:///proc/nowhere", "store"),
        ("exports.0.options={bits: 4, group_size: 48}", "48"),
        ("exports.0.options={bits: 4, group_size: 64}", "must divide hidden_size 32"),
        ("calibration.num_windows=100000", "at most num_windows"),
        ("steps.0.prune.windows_per_submodel=8", "ask for at most 7"),
    ],
)
def test_what_would_fail_at_night_is_found_before_it(
    tmp_path: Path, recipe_file: Path, override: str, told: str
) -> None:
    done = call("run", recipe_file, "--set", override, home=tmp_path)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr and "Traceback" not in done.stderr


def test_doctor_says_ready(tmp_path: Path, recipe_file: Path) -> None:
    done = call("doctor", recipe_file, home=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ready" in done.stdout and "error" not in done.stdout.replace("error(s)", "")


def test_plan_lists_stages_and_weight_bytes(tmp_path: Path, recipe_file: Path) -> None:
    plan = json.loads(call("plan", recipe_file, "--json", home=tmp_path).stdout)
    assert plan["stages"][0]["outcome"] == "to compute"
    assert [row["bits"] for row in plan["weights"]] == [32, 16, 8, 4, 3, 2, 1]


def test_evaluate_measures_any_folder(tmp_path: Path, tiny_llama: Path, text_file: Path) -> None:
    done = call(
        "evaluate", tiny_llama, "--text", text_file, "--window", "32", "--json", home=tmp_path
    )
    metrics = json.loads(done.stdout)
    assert metrics["num_documents"] == 40 and metrics["nats_per_token"] > 0
