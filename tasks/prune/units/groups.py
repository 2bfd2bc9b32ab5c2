"""All kinds of unit behind one list, so that whoever scores, draws or cuts treats them alike."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from tasks.prune.units.experts import find_experts
from tasks.prune.units.hidden import find_hidden
from tasks.prune.units.layers import find_layer_group, find_sublayer_group
from tasks.prune.units.units import NAMES, Units, find_sublayers


def find_units(model: Any, kinds: Collection[str], trust_remote_code: bool = False) -> list[Units]:
    """Return the groups of units of these kinds (units.KINDS).

    Those of the layers come first, layer by layer and attention first; then those that are chosen
    once for the whole network. Works on a model without storage.

    Raises:
        ValueError: the model has no units of a kind, and why.
    """
    groups: list[Units] = [s for s in find_sublayers(model) if s.kind in kinds]
    if "experts" in kinds:
        groups += find_experts(model)
    groups.sort(key=lambda group: group.layer or 0)
    if "hidden" in kinds:
        groups.append(find_hidden(model, trust_remote_code))
    if "layers" in kinds:
        groups.append(find_layer_group(model))
    if "sublayers" in kinds:
        groups.append(find_sublayer_group(model))
    found = {group.kind for group in groups}
    if missing := [kind for kind in kinds if kind not in found]:
        raise ValueError(f"found no {' and no '.join(NAMES[k] for k in missing)} in its layers")
    return groups
