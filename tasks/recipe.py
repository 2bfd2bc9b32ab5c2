"""The recipe: one typed, frozen config from the YAML file, the command line or Prefect's form.

Everything a run does is said here, once. Secrets never are: they come from the environment.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.plugins import resolve_options

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(gt=0)]
Kind = Literal["kv_groups", "ffn", "experts", "hidden", "layers"]

BUDGETS = ("num_parameters", "bytes", "latency_ms")


class Config(BaseModel):
    """Base of all parts of a recipe: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Plugin(Config):
    name: str
    options: dict[str, Any] = {}

    def resolved(self, kind: str) -> Self:
        """Return a copy whose options are checked, with the plugin's defaults filled in."""
        return self.model_copy(update={"options": resolve_options(kind, self.name, self.options)})


class WeightedLoss(Plugin):
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor of this term in the sum of all losses."""


class Teacher(Config):
    model: str
    """A folder, a hub id, or an s3:// URI."""
    revision: str | None = None
    """Branch, tag or commit on the hub; the commit that it resolves to enters the keys."""
    trust_remote_code: bool = False
    """Run the Python files that come with the model."""


class Calibration(Config):
    text: str
    """JSONL with `text` or `messages`, for pruning and quantization."""
    num_windows: Count = 128
    """Windows of calibration text, the first of the file."""
    window: Count = 256
    """Tokens in a window."""


class Evaluation(Config):
    text: str
    """Held-out JSONL that decides the gate."""
    window: Count = 256
    """Tokens that the model sees at once."""
    stride: Count | None = None
    """Tokens scored per window; as many as the window holds when left out."""

    @model_validator(mode="after")
    def check_stride(self) -> Self:
        if self.stride is not None and self.stride > self.window:
            raise ValueError(f"stride must be at most the window ({self.window})")
        return self


class CorpusOptions(Config):
    sources: Annotated[list[Plugin], Field(min_length=1)]
    filters: list[Plugin] = [Plugin(name="exact_dedup")]
    """Applied in this order; a filter keeps a document or drops it with a reason."""
    block_tokens: Count = 256
    """Tokens in a packed training block."""


class Sparsity(Config):
    """Fraction removed of the incoming model, per kind of unit."""

    ffn: Fraction = 0.0
    kv_groups: Fraction = 0.0
    experts: Fraction = 0.0
    """Of every layer's experts; at least as many stay as a token is sent to."""
    hidden: Fraction = 0.0
    """Of the dimensions of the residual stream, the same ones in the whole network."""
    layers: Fraction = 0.0
    """Of the layers, rounded to whole ones."""


class Budget(Config):
    """What the smaller model may cost, exactly one of three; measured sensitivities then decide
    how much of each kind of unit stays."""

    num_parameters: Count | None = None
    """Tied parameters counted once."""
    bytes: Count | None = None
    """At 4 bytes per parameter, tied ones once, as the teacher's size is counted."""
    latency_ms: Annotated[float, Field(gt=0)] | None = None
    """Median time of one forward pass in float32 on a worker."""
    batch: Count = 1
    """Sequences in the timed forward pass."""
    tokens: Count = 128
    """Tokens in each of them."""
    kinds: list[Kind] | None = None
    """Kinds of unit that may be cut; all that the architecture can give up when left out."""

    @model_validator(mode="after")
    def check_one(self) -> Self:
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"budget: expected exactly one of {', '.join(BUDGETS)}, "
                f"got {' and '.join(given) or 'none'}; remove the others"
            )
        return self


class PruneOptions(Config):
    method: Literal["perturbation", "criterion"] = "perturbation"
    """`perturbation` learns each unit's importance from masked forward passes, with the criterion
    as its prior; `criterion` trusts the criterion alone."""
    criterion: Plugin = Plugin(name="reconstruction")
    sparsity: Fraction | Sparsity | None = None
    """One fraction of all attention and FFN parameters, or one per kind."""
    budget: Budget | None = None
    """In place of `sparsity`."""
    shape: Literal["uniform", "padded", "per_layer"] = "uniform"
    """`uniform` cuts the same width from every layer: a stock architecture. `padded` gives each
    sublayer the width that it needs, out of the same total, and fills up with zeros to the widest
    one's: stock code loads it, but it saves less. `per_layer` saves those widths as they are, with
    the modelling file that they need: only `trust_remote_code` loads it."""
    num_submodels: Annotated[int, Field(gt=1, multiple_of=2)] = 64
    """Sub-models drawn, each together with its complement."""
    sampling: Literal["near", "independent"] = "near"
    """`near` draws sub-models of the final shape near the criterion's choice, to correct it;
    `independent` keeps each unit by itself with the density as its probability, to learn what all
    units contribute."""
    utility: str = "loss"
    """What a sub-model is worth: `loss` (negative, in nats/token), `kl` (negative KL(dense ||
    sub-model)), or a function of your own as `package.module:function`, which must import here and
    on every worker: called with a sub-model's logits [windows, tokens, vocabulary] and the token
    ids [windows, tokens], and, if it takes a third argument, the dense model's logits; returns a
    number, the higher the better. It need not be differentiable."""
    windows_per_submodel: Count = 8
    """Calibration windows on which each sub-model is scored. Each unit of work has a shard of its
    own: no window scores a second unit before the calibration text is used up. Sub-models are
    repaired on other windows than they are scored on."""
    submodels_per_unit: Annotated[int, Field(gt=1, multiple_of=2)] = 8
    """Sub-models in one unit of work, the least that a killed worker repeats."""
    repair: bool = True
    """Refit what is left of every sublayer to the dense model by ridge least squares on the
    calibration text; sub-models are then scored repaired, too."""
    refine: Annotated[int, Field(ge=0)] = 3
    """Levenberg-Marquardt steps by which the final cut's feed-forward sublayers are fitted as a
    whole after that; the last one also to the dense model's next-token distribution."""
    allow_rounding: bool = False
    """Accept an aligned shape that differs by more than 0.05 from the sparsity asked for."""

    @model_validator(mode="after")
    def check_amount(self) -> Self:
        if (self.sparsity is None) == (self.budget is None):
            raise ValueError(
                "prune: expected exactly one of sparsity and budget, got "
                f"{'none' if self.budget is None else 'both'}; say how much to cut once, such as "
                "sparsity: 0.5 or budget: {num_parameters: 800_000}"
            )
        layers = self.sparsity.layers if isinstance(self.sparsity, Sparsity) else 0
        if layers and self.shape != "uniform":
            raise ValueError(
                f"prune: shape: {self.shape} gives widths to layers that stay, got layers: "
                f"{layers:g} to cut as well; cut layers in a prune step before this one"
            )
        if self.budget and self.shape != "uniform":
            raise ValueError(
                f"prune: a budget is kept by shape: uniform, got {self.shape}; "
                "give a sparsity instead"
            )
        return self


class DistillOptions(Config):
    losses: Annotated[list[WeightedLoss], Field(min_length=1)]
    num_tokens: Count
    """Tokens trained on; the corpus is repeated when it is smaller."""
    initializer: Plugin = Plugin(name="incoming")
    """Where the student's weights come from; `incoming` is the model of the step before."""
    batch_blocks: Count = 16
    """Blocks per optimiser step over all workers and accumulation steps."""
    micro_batch_blocks: Count = 8
    """Blocks per forward pass of one worker."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Peak, reached after the warm-up; a cosine then falls to a tenth of it."""
    warmup: Fraction = 0.05
    """Fraction of the steps that warm up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient."""
    zero_stage: Literal[0, 1, 2] = 1
    """DeepSpeed ZeRO stage."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    checkpoint_steps: Count = 50
    """Optimiser steps between checkpoints; the most that a crash repeats."""


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


class Export(Config):
    name: Name
    method: str
    """How weights are quantized: `none`, `absmax`, `gptq`, ..."""
    format: str
    """How they are written: `safetensors`, `compressed-tensors`, ..."""
    options: dict[str, Any] = {}
    """The method's options; `dtype` is for whatever stays unquantized."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the parameters that stay unquantized."""

    @property
    def group_size(self) -> int:
        """Every input width must be a multiple of this."""
        return int(self.options.get("group_size") or 1)


class TeacherGate(Config):
    max_nats_increase: Annotated[float, Field(ge=0)] | None = None
    """Largest held-out increase over the teacher, in nats/token."""
    max_bytes_ratio: Annotated[float, Field(gt=0)] | None = None
    """Largest size, as a fraction of the teacher at 4 bytes per parameter."""


class ChampionGate(Config):
    max_nats_increase: Annotated[float, Field(ge=0)] | None = None
    """Largest held-out increase over the channel's current artifact, in nats/token."""


class Gate(Config):
    teacher: TeacherGate = TeacherGate()
    champion: ChampionGate = ChampionGate()


class Publish(Config):
    store: str | None = None
    """file:// or s3:// URI; the state folder's own store when left out."""
    channel: Name = "nightly"


class Cluster(Config):
    ray: str = "local"
    """`local`, or the address of a running cluster. RAY_ADDRESS overrides."""
    workers: Count = 2
    """Worker processes, for units of work and for training."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    threads_per_worker: Count = 1


class Recipe(Config):
    name: Name
    seed: Annotated[int, Field(ge=0)] = 0
    teacher: Teacher
    calibration: Calibration
    evaluation: Evaluation
    corpus: CorpusOptions
    steps: Annotated[list[Step], Field(min_length=1)]
    comparisons: list[Literal["from_scratch"]] = []
    """Computed for the report, never published."""
    exports: Annotated[list[Export], Field(min_length=1)]
    """Each is evaluated, gated and published by itself; the first is the default."""
    gate: Gate = Gate()
    publish: Publish = Publish()
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def check_names(self) -> Self:
        names = [export.name for export in self.exports]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"exports must have different names, got {sorted(doubled)} twice")
        shapes = [step.prune.shape for step in self.steps if step.prune]
        if "per_layer" in shapes and not self.teacher.trust_remote_code:
            raise ValueError(
                "steps: shape: per_layer makes a model that loads with trust_remote_code only, got "
                "teacher.trust_remote_code: false; set it to true, or choose uniform or padded"
            )
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
