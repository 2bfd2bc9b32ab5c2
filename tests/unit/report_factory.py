"""A report with numbers like those of a real night: two exports, one of them refused."""

import math
import random

from tasks.evaluate.sampled import Continuation, NextTokens, RankedToken, Samples
from tasks.models.components import Component
from tasks.quality_records import Difference, GateCheck, GateReport, Latency, LatencyRow, TaskScore
from tasks.records import ArtifactRef, CorpusRef
from tasks.report.report_data import (
    Changes,
    Comparison,
    EarlierExport,
    ExportChange,
    ExportOutcome,
    LossCurve,
    ModelLook,
    ModelRow,
    PruningEvidence,
    PruningRound,
    ReportData,
    ValueChange,
)
from tasks.run_records import CorpusResult, CorpusStep, Cost, PublishedCorpus, StageResult

TEACHER_NATS, TEACHER_BYTES = 3.243, 5_773_824
PROTOCOL = "windows of 256, stride 256, documents joined with BOS, float32 on cpu"


def make_gate(figure: float, num_bytes: int, champion: float | None) -> GateReport:
    def nats(name: str, figure: float, width: float, limit: float) -> GateCheck:
        upper = figure + width
        reason = f"{figure:+.4f} nats/token (upper end {upper:+.4f}), the limit is {limit:g}"
        return GateCheck(
            name=f"{name}.max_nats_increase",
            against="a" * 64,
            limit=limit,
            figure=figure,
            difference=Difference(
                figure=figure, lower=figure - width, upper=upper, num_documents=174
            ),
            passed=upper <= limit,
            reason=None if upper <= limit else reason,
            protocol=f"{PROTOCOL}; paired bootstrap",
        )

    ratio = num_bytes / TEACHER_BYTES
    checks = [
        nats("teacher", figure, 0.021, 0.30),
        GateCheck(
            name="teacher.max_bytes_ratio",
            against="a" * 64,
            limit=0.30,
            figure=ratio,
            passed=ratio <= 0.30,
            reason=None if ratio <= 0.30 else f"{ratio:.3f} of the teacher's, the limit is 0.3",
            protocol="sum of the files' bytes",
        ),
    ]
    notes = ["No champion on the channel yet: champion.max_nats_increase was skipped."]
    if champion is not None:
        checks.append(nats("champion", champion, 0.006, 0.01))
        notes = []
    return GateReport(passed=all(c.passed for c in checks), checks=checks, notes=notes)


def make_row(
    title: str, role: str, parameters: int, size: int, nats: float, speed: int
) -> ModelRow:
    scores = {"sst2": 0.911 - 0.02 * (role != "teacher"), "cola": 0.402 - 0.05 * (nats - 3.243)}
    ms = {1: (12.5, 3.1), 8: (80.0, 4.2)}
    return ModelRow.model_validate(
        {
            "tasks": {
                name: TaskScore(
                    score=score,
                    scores={"accuracy": score},
                    num_items=872,
                    protocol="872 items",
                    items_uri="store://items",
                )
                for name, score in scores.items()
            },
            "task_average": sum(scores.values()) / 2,
            "latency": Latency(
                rows=[
                    LatencyRow(batch_size=n, prefill_ms=a, decode_ms=b, peak_bytes=400_000_000)
                    for n, (a, b) in ms.items()
                ],
                protocol="prompts of 128 tokens, 32 new ones",
            ),
            "title": title,
            "role": role,
            "num_parameters": parameters,
            "num_bytes": size,
            "nats_per_token": nats,
            "perplexity": math.exp(nats),
            "tokens_per_s": speed,
        }
    )


def make_export(name: str, gate: GateReport, num_bytes: int, description: str) -> ExportOutcome:
    digest = name.encode().hex().ljust(64, "7")
    reference = f"docs-lm/{name}@sha256:{digest[:12]}"
    artifact = ArtifactRef(
        recipe="docs-lm",
        export=name,
        digest=digest,
        uri=f"s3://models/artifacts/docs-lm/{name}/{digest}",
        num_parameters=738_000,
        num_bytes=num_bytes,
    )
    return ExportOutcome(
        name=name,
        outcome="published" if gate.passed else "refused",
        description=description,
        gate=gate,
        artifact=artifact if gate.passed else None,
        pull_command=f"nightpress pull {reference} ./docs-lm" if gate.passed else None,
    )


def make_corpus() -> CorpusResult:
    return CorpusResult(
        corpus=CorpusRef(
            uri="store://stages/corpus/1",
            digest="c" * 64,
            num_blocks=4_100,
            block_tokens=256,
            num_documents=11_220,
            dropped={"exact duplicate": 780, "shares a 13-gram with the evaluation text": 12},
            sources={"local_text": 8_000, "self_instruct": 3_220},
            outputs={"negative": 5_580, "positive": 5_640},
            licences={"CC0-1.0": 8_000, "unknown": 3_220},
            generators={"LlamaForCausalLM f867df0ed617": 3_220},
        ),
        steps=[
            CorpusStep(
                title="source 1 self_instruct",
                num_rows=4_012,
                refused={"too near an earlier one (ROUGE-L 0.7 or more)": 377, "malformed": 41},
                spent={"requests": 4_430, "prompt_tokens": 1_204_000, "completion_tokens": 310_500},
            ),
            CorpusStep(title="source 2 local_text", num_rows=8_000, refused={}, spent={}),
        ],
        published=PublishedCorpus(
            digest="9" * 64,
            uri="s3://models/artifacts/docs-lm/corpus/999",
            num_rows=11_220,
            num_bytes=4_100_000,
            outcome="published",
        ),
    )


WRITTEN = {
    "teacher": "If the file is opened for writing, it is truncated first.\n\nNew in version 3.2.",
    "2 distill": "If the file is opened for writing, the buffer is flushed when it is closed.",
    "int4": "If the file is opened, the *mode* argument is a string.\n\nChanged in version 3.3.",
    "int8": "If the file is opened for writing, the buffer is flushed when it is closed.",
}
TOKENS = [" the", " file", "\n", " a", ".", ",", "<s>", " open", "ing", " is", "\t", " mode", "()"]
TOKENS += [" *", " in", " object", " returned", "`", " to", " and", " of"]


def make_look(title: str, ratio: float, parts: bool) -> ModelLook:
    """Four continuations, ten places of twenty tokens, and the components of a small Llama."""
    rng = random.Random(title)
    sizes = {"embeddings": (524_288, 0), "attention": (196_608, 590_000)}
    sizes |= {"feed-forward": (720_000, 1_440_000), "norms": (2_560, 0), "head": (0, 1_048_576)}

    def place(number: int) -> NextTokens:
        tokens = rng.sample(TOKENS, 20)
        first = [math.exp(-rank / 3) for rank in range(21)]
        flat = [math.exp(-rank / 6) for rank in range(21)]
        return NextTokens(
            context=f"Return number {number} of the lines that are in the buffer, and leave",
            actual=" the",
            ranked=[
                RankedToken(text=text, probabilities=[a / sum(first), b / sum(flat)])
                for text, a, b in zip(tokens, first, flat, strict=False)
            ],
        )

    return ModelLook(
        title=title,
        components=[
            Component(
                name=name,
                num_parameters=round(count * (1 if name == "embeddings" else ratio)),
                flops_per_token=round(flops * ratio),
            )
            for name, (count, flops) in sizes.items()
        ]
        if parts
        else None,
        samples=Samples(
            protocol="greedy, at most 48 tokens, float32 on cpu",
            temperatures=[1.0, 2.0],
            continuations=[
                Continuation(
                    prompt=f"class io.TextIOWrapper{number}\n   A buffered text stream over a "
                    "buffered binary stream. ",
                    text=WRITTEN[title],
                    ended=number == 1,
                )
                for number in range(4)
            ],
            next_tokens=[place(number) for number in range(10)],
        ),
    )


def make_changes() -> Changes:
    def nats(figure: float, width: float) -> Difference:
        return Difference(
            figure=figure, lower=figure - width, upper=figure + width, num_documents=174
        )

    return Changes(
        started="2026-11-19 02:00 UTC",
        num_ended_early=1,
        exports=[
            ExportChange(
                name="int4",
                is_same=False,
                bytes_before=1_036_000,
                num_bytes=1_004_000,
                nats=nats(-0.014, 0.004),
                speed=1.04,
            ),
            ExportChange(
                name="int8",
                is_same=False,
                bytes_before=1_766_000,
                num_bytes=1_766_000,
                nats=nats(-0.001, 0.004),
                speed=1.003,
            ),
        ],
        recipe=[ValueChange(name="steps.1.distill.num_tokens", before="300000", now="400000")],
        data=[ValueChange(name="source 2 path", before="3f9c1a2b7d10", now="b5402ac98a1b")],
        other_stages=["source 2 local_text", "corpus", "2 distill", "2 from scratch"],
        num_stages=8,
    )


def make_cost(seconds: float, price: float | None = 2.5) -> Cost:
    hours = 2 * seconds / 3600
    return Cost(
        worker_hours=hours,
        price=None if price is None else hours * price,
        currency="EUR",
        energy_kwh=0.06 * hours,
        energy_protocol="estimated: 60 W for each worker",
    )


def make_report(num_layers: int = 6, ffn_width: int = 384) -> ReportData:
    rng = random.Random(0)
    int4, int8 = 1_004_000, 1_766_000
    measured = [rng.gauss(-4.2, 0.35) for _ in range(48)]
    loss = [2.1 * math.exp(-step / 40) + 1.15 + rng.gauss(0, 0.03) for step in range(300)]
    nodes = ["node-a", "node-b"]
    stages = [
        ("source 1 teacher_samples", "source", "cached", 180.0),
        ("corpus", "corpus", "cached", 4.0),
        ("1 prune", "prune", "computed", 96.4),
        ("2 from scratch", "distill", "computed", 201.8),
        ("2 distill", "distill", "computed", 212.3),
        ("export int4", "export", "computed", 21.2),
        ("export int8", "export", "computed", 2.3),
        ("evaluate", "evaluate", "computed", 17.9),
    ]
    return ReportData(
        recipe_name="docs-lm",
        run_id="20261120T020004-4f1c",
        started="2026-11-20 02:00 UTC",
        seconds=583.0,
        models=[
            make_row("teacher", "teacher", 1_443_456, TEACHER_BYTES, TEACHER_NATS, 15_210),
            make_row("1 prune", "step", 841_856, 3_367_424, 3.905, 21_700),
            make_row("2 from scratch", "comparison", 841_856, 3_367_424, 3.871, 21_650),
            make_row("2 distill", "step", 841_856, 3_367_424, 3.421, 21_690),
            make_row("int4", "export", 841_856, int4, 3.468, 13_900),
            make_row("int8", "export", 841_856, int8, 3.424, 17_900),
        ],
        stages=[
            StageResult.model_validate(
                {
                    "title": title,
                    "stage": stage,
                    "key": "f" * 64,
                    "outcome": outcome,
                    "seconds": seconds,
                    "nodes": nodes if stage in ("prune", "distill") else nodes[:1],
                    "peak_bytes": 1_512_000_000 if stage == "distill" else None,
                    "cost": make_cost(seconds),
                }
            )
            for title, stage, outcome, seconds in stages
        ],
        exports=[
            make_export(
                "int4",
                make_gate(0.225, int4, None),
                int4,
                "Exported by gptq (bits 4, group_size 64) as compressed-tensors.",
            ),
            make_export(
                "int8",
                make_gate(0.181, int8, -0.004),
                int8,
                "Exported by absmax (bits 8) as compressed-tensors.",
            ),
        ],
        comparisons=[
            Comparison(
                title="2 distill",
                against="1 prune",
                difference=Difference(figure=-0.484, lower=-0.511, upper=-0.458, num_documents=174),
            ),
            Comparison(
                title="2 distill",
                against="2 from scratch",
                difference=Difference(figure=-0.45, lower=-0.482, upper=-0.419, num_documents=174),
            ),
            Comparison(
                title="int8",
                against="2 distill",
                difference=Difference(figure=0.003, lower=-0.001, upper=0.007, num_documents=174),
            ),
        ],
        pruning=[
            PruningEvidence(
                title="1 prune",
                importance={
                    "ffn": [
                        [rng.expovariate(1.5 + layer) for _ in range(ffn_width)]
                        for layer in range(num_layers)
                    ],
                    "kv_groups": [
                        [rng.uniform(0, 2.5 - 0.3 * (layer % 6)) for _ in range(4)]
                        for layer in range(num_layers)
                    ],
                    "layers": [[rng.expovariate(1.0) for _ in range(num_layers)]],
                    "hidden": [[rng.expovariate(1.0) for _ in range(128)]],
                },
                kept={
                    "ffn": [ffn_width // 2] * num_layers,
                    "kv_groups": [3] * num_layers,
                    "layers": [num_layers - 2],
                    "hidden": [96],
                },
                kept_units={"layers": [list(range(1, num_layers - 1))]},
                removed=0.474,
                dense_nats_per_token=3.301,
                candidates={"criterion": 3.918, "sweep": 3.882},
                chosen="sweep",
                rounds=[
                    PruningRound(
                        kept={"kv_groups": 3, "ffn": 96}, chosen="criterion", nats_per_token=3.417
                    ),
                    PruningRound(
                        kept={"kv_groups": 2, "ffn": 64}, chosen="sweep", nats_per_token=3.882
                    ),
                ],
                num_scored=72,
                num_left_out=2,
                predicted=[value + rng.gauss(0, 0.12) for value in measured],
                measured=measured,
                kendall_tau=0.79,
                r_squared=0.87,
            )
        ],
        training=[
            LossCurve(title="2 distill", tokens=[1024 * (i + 1) for i in range(300)], loss=loss),
            LossCurve(
                title="2 from scratch",
                tokens=[1024 * (i + 1) for i in range(300)],
                loss=[value + 2.2 * math.exp(-i / 90) for i, value in enumerate(loss)],
            ),
        ],
        corpus=make_corpus(),
        looks=[
            make_look("teacher", 1.0, True),
            make_look("2 distill", 0.5, True),
            make_look("int4", 0.5, False),
            make_look("int8", 0.5, False),
        ],
        earlier=[
            EarlierExport(
                title=title,
                started=f"2026-11-{day:02d} 02:00 UTC",
                num_bytes=size,
                nats_per_token=nats,
            )
            for title, day, size, nats in [
                ("int4", 19, 1_036_000, 3.482),
                ("int4", 18, 1_120_000, 3.47),
                ("int3", 17, 840_000, 3.71),
                ("int8", 19, 1_766_000, 3.425),
                ("int8", 16, 1_990_000, 3.39),
            ]
        ],
        changes=make_changes(),
        cost=make_cost(533.0),
        worker_hour=2.5,
        protocol={
            "quality": f"{PROTOCOL}, text 3f9c1a2b7d10",
            "speed": "prefill of 8 x 256 tokens, median of 7, float32 on cpu, 1 thread(s)",
            "bytes": "sum over the export's files; teacher and steps at 4 bytes per parameter",
        },
        versions={"nightpress": "1.0.0", "torch": "2.13.0", "transformers": "5.23.0"},
        recipe_yaml="name: docs-lm\nseed: 0\nteacher: {model: ./teacher}\n",
    )
