"""How numbers, steps and verdicts read, in the report and on the model card alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from tasks.quality_records import Difference, GateCheck
from tasks.records import CorpusRef
from tasks.run_records import CorpusStep, Cost, StageResult

MINUS = "\N{MINUS SIGN}"

KINDS = {
    "kv_groups": "KV groups",
    "ffn": "FFN neurons",
    "hidden": "hidden dimensions",
}
"""Kinds of unit that are called otherwise than in recipes."""


def name_kind(kind: str) -> str:
    return KINDS.get(kind, kind)


def format_bytes(num_bytes: float) -> str:
    """Decimal units, three digits: 5.78 MB."""
    return three_digits(num_bytes, (" B", " kB", " MB", " GB", " TB"))


def format_count(count: float) -> str:
    """Three digits: 1.44 M."""
    return three_digits(count, ("", " k", " M", " B"))


def format_energy(kwh: float) -> str:
    """Three digits: 12.3 Wh; what is next to nothing is not given any."""
    return "< 0.1 Wh" if 0 < kwh < 1e-4 else three_digits(1000 * kwh, (" Wh", " kWh", " MWh"))


def format_price(cost: Cost) -> str:
    """In hundredths, of which there are always some: 0.74 EUR, < 0.01 EUR."""
    price = cost.price or 0.0
    return f"{'< 0.01' if 0 < price < 0.005 else f'{price:,.2f}'} {cost.currency}"


def three_digits(value: float, units: tuple[str, ...]) -> str:
    step = 0
    while value >= 999.5 and step < len(units) - 1:
        value, step = value / 1000, step + 1
    return f"{value:#.3g}".rstrip(".") + units[step]


def format_seconds(seconds: float) -> str:
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def format_tick(value: float) -> str:
    """As short as it can be: 0.5, not 0.50."""
    return f"{value:.3g}".replace("-", MINUS)


def shorten(text: str) -> str:
    """Drop the zeros of a round number: 1 MB, not 1.00 MB."""
    return re.sub(r"\.0+(?= |$)", "", text)


def signed(value: float, digits: int = 3) -> str:
    """A difference, with a true minus sign; what rounds to nothing has none."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else MINUS}{text}"


def format_interval(difference: Difference) -> str:
    return f"{signed(difference.lower)} to {signed(difference.upper)}"


def judge(difference: Difference) -> str:
    """Say what the two one-sided 95% intervals show, and nothing more."""
    if difference.upper < 0:
        return "better"
    return "worse" if difference.lower > 0 else "no difference shown"


def nats_unit(protocol: str) -> Literal["nats/token", "nats/row"]:
    """Return what held-out nats are counted by: tokens of text, or rows with a label."""
    return "nats/row" if "nats/row" in protocol else "nats/token"


def title_check(check: GateCheck) -> str:
    against, limit, *task = check.name.split(".", 2)
    return {
        "max_nats_increase": f"{nats_unit(check.protocol)} over the {against}",
        "max_bytes_ratio": f"bytes, of the {against}'s",
        "max_score_drop": f"{''.join(task)} below the {against}",
        "must_not_fall": f"{''.join(task)} must not fall below the {against}",
    }[limit]


def describe_check(check: GateCheck) -> str:
    """One line: the figure, the end of its interval that decides where there is one, the limit."""
    if check.difference is None:
        return f"{check.figure:.3f}, limit {check.limit:g}"
    if ".must_not_fall." in check.name:
        lower = signed(check.difference.lower, 4)
        return f"{signed(check.figure, 4)}, lower end {lower}, limit {check.limit:g}"
    upper = signed(check.difference.upper, 4)
    return f"{signed(check.figure, 4)}, upper end {upper}, limit {check.limit:g}"


def describe_means(stage: StageResult) -> str:
    """Say what a stage took beside its time, as far as it is known."""
    said = [] if stage.peak_bytes is None else [f"{format_bytes(stage.peak_bytes)} a worker"]
    if stage.cost and stage.cost.price is not None:
        said.append(format_price(stage.cost))
    if stage.cost:
        said.append(format_energy(stage.cost.energy_kwh))
    return ", ".join(said)


def describe_options(options: dict[str, Any]) -> str:
    said = ", ".join(f"{name} {value}" for name, value in options.items() if value is not None)
    return f" ({said})" if said else ""


def describe_amount(prune: dict[str, Any]) -> str:
    """Say how much a prune step cuts."""
    sparsity, budget = prune["sparsity"], prune.get("budget")
    if budget:
        names = ("num_parameters", "bytes", "latency_ms")
        (name,) = [name for name in names if budget[name] is not None]
        return f"to {name} {budget[name]:,}"
    if isinstance(sparsity, dict):
        return ", ".join(f"{value:.0%} of {kind}" for kind, value in sparsity.items() if value)
    return f"{sparsity:.0%} of attention and FFN parameters"


def describe_step(step: dict[str, Any]) -> str:
    """Say in one sentence what a resolved recipe's step does."""
    if prune := step.get("prune"):
        criterion = prune["criterion"]["name"]
        method = {
            "perturbation": f"importance learned from {prune['num_submodels']} masked sub-models "
            f"and their complements, prior {criterion}",
            "criterion": f"importance by {criterion}",
        }[prune["method"]]
        return f"Pruned {describe_amount(prune)}, {prune['shape']} shape; {method}."
    distill = step["distill"]
    return (
        f"Distilled on {distill['num_tokens']:,} tokens, initialised by "
        f"{distill['initializer']['name']}; loss "
        f"{describe_losses(distill['losses'])}."
    )


def describe_export(export: dict[str, Any]) -> str:
    """Say in one or two sentences how a resolved recipe's export is made."""
    mixed, train = export.get("mixed_precision"), export.get("train")
    options = describe_options(
        {name: value for name, value in export["options"].items() if not (mixed and name == "bits")}
    )
    widths = ""
    if mixed:
        choice = join_words([str(bits) for bits in sorted(mixed["bits"])], "or")
        widths = f" at {choice} bits, weight by weight, within {mixed['bytes']:,} bytes"
    trained = ""
    if train:
        trained = (
            f"Trained through {export['method']}'s rounding on {train['num_tokens']:,} tokens; "
            f"loss {describe_losses(train['losses'])}. "
        )
    return (
        f"{trained}Exported by {export['method']}{options}{widths} as {export['format']}, other "
        f"parameters in {export['dtype']}."
    )


def describe_losses(losses: Sequence[dict[str, Any]]) -> str:
    return " + ".join(f"{loss['weight']:g} x {loss['name']}" for loss in losses)


def list_accounts(steps: Sequence[CorpusStep], corpus: CorpusRef) -> list[str]:
    """Say of each reason how many rows a corpus lost to it, before the filters and by them."""
    refused = [
        f"{step.title} refused {count:,}: {reason}"
        for step in steps
        for reason, count in step.refused.items()
    ]
    dropped = [f"filters dropped {count:,}: {reason}" for reason, count in corpus.dropped.items()]
    return refused + dropped


def list_contents(corpus: CorpusRef) -> list[tuple[str, str, int]]:
    """(what, its name, rows kept) of each source, label, licence and writing model."""
    counted = {
        "source": corpus.sources,
        "label": corpus.outputs,
        "licence": corpus.licences,
        "written by": corpus.generators,
    }
    return [(what, name, n) for what, counts in counted.items() for name, n in counts.items()]


def join_words(words: Sequence[str], last: str = "and") -> str:
    """a, b and c"""
    *most, end = words
    return f"{', '.join(most)} {last} {end}" if most else end
