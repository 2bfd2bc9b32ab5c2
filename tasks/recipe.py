"""The recipe: one typed, frozen config from the YAML file, the command line or Prefect's form.

Everything a run does is said here, once. Secrets never are: they come from the environment.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tasks.cluster_options import Cluster
from tasks.corpus_options import DATA_SET, CorpusOptions, Task
from tasks.cost_options import CostOptions
from tasks.distill_options import DistillOptions
from tasks.evaluation_options import Evaluation
from tasks.gate_options import Gate
from tasks.prune_options import PruneOptions
from tasks.recipe_parts import Config, Count, Name, NamedModel
from tasks.schedule import Schedule


class Teacher(NamedModel):
    trust_remote_code: bool = False
    """Run the Python files that come with the model."""


class Calibration(Config):
    text: str
    """JSONL with `text` or `messages`, for pruning and quantization."""
    num_windows: Count = 128
    """Windows of calibration text, the first of the file."""
    window: Count = 256
    """Tokens in a window."""


class Step(Config):
    """One step, written as a mapping with one key: `prune: {...}` or `distill: {...}`."""

    prune: PruneOptions | None = None
    distill: DistillOptions | None = None

    @model_validator(mode="after")
    def check_one(self) -> Self:
        if (self.prune is None) == (self.distill is None):
            raise ValueError("a step is a mapping with exactly one of the keys prune, distill")
        return self

    @property
    def kind(self) -> str:
        return "prune" if self.prune else "distill"


class MixedPrecision(Config):
    """A width for each weight, by how much it costs in loss, instead of one for all."""

    bytes: Count
    """What the export's weights may take on disk, those that are not quantized included."""
    bits: Annotated[list[Literal[2, 3, 4, 8]], Field(min_length=2)] = Field(default=[2, 3, 4, 8])
    """Widths to choose from; the method must have them."""
    num_windows: Count = 16
    """Calibration windows on which each width's loss is measured."""


class Export(Config):
    name: Name
    method: str
    """How weights are quantized: `none`, `absmax`, `gptq`, ..."""
    format: str
    """How they are written: `safetensors`, `compressed-tensors`, ..."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The method's options."""
    format_options: dict[str, Any] = Field(default_factory=dict)
    runtime: Literal["transformers", "vllm", "llama.cpp"] | None = None
    """What is going to run it: an export that this cannot read is refused."""
    mixed_precision: MixedPrecision | None = None
    """Overrides the method's `bits`, weight by weight."""
    train: DistillOptions | None = None
    """Before it is quantized, the model is trained through the method's own rounding."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the parameters that stay unquantized."""

    @property
    def group_size(self) -> int:
        """Every input width must be a multiple of this."""
        return int(self.options.get("group_size") or 1)


class Publish(Config):
    store: str | None = None
    """file:// or s3:// URI; the state folder's own store when left out."""
    channel: Name = "nightly"


Event = Literal["failed", "refused", "deadline", "published"]


class Webhook(Config):
    """A URL that is told how nights end; a chat's incoming hook, for example."""

    webhook_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Environment variable that holds the URL; the URL is a secret, so it is nowhere else."""
    on: Annotated[list[Event], Field(min_length=1)]
    """`failed`, `refused` (an export by its gate), `deadline`, `published`."""

    @model_validator(mode="before")
    @classmethod
    def read_on(cls, data: Any) -> Any:
        """YAML 1.1, which PyYAML reads, takes a bare `on` for true."""
        if isinstance(data, dict) and True in data and "on" not in data:
            return {"on" if key is True else key: value for key, value in data.items()}
        return data


class Recipe(Config):
    name: Name
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    teacher: Teacher
    task: Task | None = None
    """What the student is for; without it, it learns text."""
    calibration: Calibration
    evaluation: Evaluation
    corpus: CorpusOptions
    steps: list[Step] = Field(default_factory=list)
    """In order, each on the model of the one before. Without any, the teacher is exported."""
    comparisons: list[Literal["from_scratch"]] = Field(default_factory=list)
    """Computed for the report, never published."""
    exports: Annotated[list[Export], Field(min_length=1)]
    """Each is evaluated, gated and published by itself; the first is the default."""
    gate: Gate = Gate()
    publish: Publish = Publish()
    schedule: Schedule = Schedule()
    cluster: Cluster = Cluster()
    cost: CostOptions = CostOptions()
    """What a night's workers cost; never in a stage's key."""
    notify: list[Webhook] = Field(default_factory=list)
    """Who is told how a night ended. A hook that fails is a warning, never a failed night."""

    @model_validator(mode="after")
    def check_names(self) -> Self:
        names = [export.name for export in self.exports]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"exports must have different names, got {sorted(doubled)} twice")
        if self.corpus.publish and DATA_SET in names:
            raise ValueError(
                f"exports: the name {DATA_SET!r} is the data set's where corpus.publish is true; "
                "name the export otherwise"
            )
        shapes = [step.prune.shape for step in self.steps if step.prune]
        if "per_layer" in shapes and not self.teacher.trust_remote_code:
            raise ValueError(
                "steps: shape: per_layer makes a model that loads with trust_remote_code only, got "
                "teacher.trust_remote_code: false; set it to true, or choose uniform or padded"
            )
        if unknown := self.gate.tasks - {task.name for task in self.evaluation.tasks}:
            raise ValueError(f"gate: {sorted(unknown)} are no names of evaluation.tasks")
        if self.comparisons and not any(step.distill for step in self.steps):
            raise ValueError("comparisons: from_scratch needs a distill step to compare with")
        return self

    @property
    def alignment(self) -> int:
        """The multiple to which every pruned input width is kept, for all exports alike."""
        sizes = {export.group_size for export in self.exports}
        largest = max(sizes)
        if any(largest % size for size in sizes):
            raise ValueError(f"exports: group sizes {sorted(sizes)} must divide one another")
        return largest
