"""`skyheed model list` and `skyheed model describe`: the models that can be trained, their needs and cost."""

from collections.abc import Mapping
from typing import Any

from skyheed.classifier.models import checkpoint
from skyheed.classifier.models.base import Network, parameters
from skyheed.classifier.models.family import Preset, preset, presets
from skyheed.classifier.prediction import Needs
from skyheed.classifier.safe_names import printable
from skyheed.classifier.training import objectives

UPDATES = (3, 12, 48, 99)  # numbers of stamps for which the cost of an update is listed


def listing() -> list[dict[str, Any]]:
    """Every model that can be trained, as plain values."""
    weights = _shipped()
    return [_entry(name, own, weights.get(name, [])) for name, own in sorted(presets().items())]


def _entry(name: str, own: Preset, weights: list[str]) -> dict[str, Any]:
    found = description(name)
    told = {
        key: found[key] for key in ("name", "family", "summary", "needs", "parameters", "parameters_served", "updates")
    }
    return told | {"weights": weights, "trained": {survey: trained(f"{survey}/{name}") for survey in weights}}


def trained(checkpoint_name: str) -> str:
    """What shipped weights were trained on, and on which device."""
    info = checkpoint.read_info(checkpoint_name)
    how, archive = info.training, info.training.get("archive", {})
    return (
        f"{info.name} {info.version}: {how.get('objects', '?')} objects of `{archive.get('command', '?')}`, "
        f"on {how.get('device', '?')}"
    )


def _shipped() -> dict[str, list[str]]:
    """Preset name -> surveys that weights of it are shipped for."""
    found: dict[str, list[str]] = {}
    for name in checkpoint.shipped_names():
        survey, _, model = name.partition("/")
        found.setdefault(model, []).append(survey)
    return found


def description(name: str, classes: int = 4, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A model's needs, layers, parameters and operations, as plain values.

    Args:
        name: of `presets`.
        changes: of its configuration.

    Raises:
        ModelError: no such model, or an invalid configuration.
    """
    own = preset(name)
    values = {**own.network, "classes": classes, **(changes or {})}
    if values.get("variant") == "paper":
        values["time"] = "position"
    config = own.family.configure(values)
    network = own.family.build(config)
    thrown_away = objectives.extra_parameters(own.objective, network)
    return {
        "name": name,
        "family": own.family.name,
        "summary": own.family.summary,
        "config": config.to_dict(),
        "objective": dict(own.objective) or {"name": "cross-entropy"},
        "needs": _needs(own.family.needs(config)),
        "classes": classes,
        "layers": [{"layer": layer, "parameters": count} for layer, count in layers(network)],
        "parameters": parameters(network) + thrown_away,
        "parameters_served": own.family.served_parameters(network),
        "updates": {str(n): own.family.operations(config, n) for n in UPDATES},
        **own.family.facts(config),
    }


def layers(network: Network) -> list[tuple[str, int]]:
    """(name, parameters) of every layer with parameters, in order."""
    rows = []
    for name, module in network.named_modules():
        count = sum(p.numel() for p in module.parameters(recurse=False))
        if count:
            rows.append((name, count))
    return rows


def _needs(needs: Needs) -> str:
    parts = [" and ".join(needs.images) + " stamps"] if needs.images else ["fluxes"]
    parts += ["photometry"] * needs.photometry + ["context"] * needs.context
    kept = f", keeps {needs.span} epoch{'s' * (needs.span > 1)} together" if needs.span else ""
    return f"{', '.join(parts)}; from {needs.fewest} epoch{'s' * (needs.fewest > 1)} on{kept}"


def text(found: list[dict[str, Any]]) -> str:
    """The listing as a table for a terminal."""
    lines = [f"{'model':18}{'parameters':>12}  {'M multiply-adds an update at ' + '/'.join(map(str, UPDATES)):44}needs"]
    for row in found:
        cost = " / ".join(f"{row['updates'][str(n)] / 1e6:,.1f}" for n in UPDATES)
        shipped = f"  [weights: {', '.join(row['weights'])}]" if row["weights"] else ""
        lines.append(f"{row['name']:18}{row['parameters_served']:>12,}  {cost:44}{row['needs']}{shipped}")
        lines.append(f"{'':18}{row['summary']}")
        lines += [f"{'':18}{survey}: {printable(how)}" for survey, how in row["trained"].items()]
    return "\n".join(lines)


def table(found: Mapping[str, Any]) -> str:
    """A description as a table for a terminal."""
    lines = [f"{found['name']}: {found['summary']}", f"needs {found['needs']}", ""]
    lines += [f"{row['layer']:40}{row['parameters']:>10,}" for row in found["layers"]]
    for key, label in (
        ("parameters", "parameters, as trained"), ("parameters_served", "parameters, as served"),
        ("parameters_encoder", "parameters of the encoder"), ("dead_parameters", "  that never matter"),
    ):  # fmt: skip
        if key in found:
            lines.append(f"{label:40}{found[key]:>10,}")
    for stamps, count in found["updates"].items():
        lines.append(f"{'multiply-adds, update at ' + stamps + ' stamps':40}{count / 1e6:>9,.1f}M")
    for name, counts in found.get("multiply_adds", {}).items():
        lines.append(f"{'multiply-adds, ' + name:40}" + "  ".join(f"{k} {v / 1e6:,.1f}M" for k, v in counts.items()))
    return "\n".join(lines)
