"""Reads from a config how rotary positions are scaled beyond those a model was pretrained for, and switches YaRN on.

What the names mean is transformers' `modeling_rope_utils.py` (5.23). Nothing here imports torch.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard

from qwen_align.align.models.tensor_table import ARCHITECTURES
from qwen_align.align.settings.yarn import Yarn

# How configs call the number of positions, the first being that of all models with rotary embeddings.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length")
_ORIGINAL = "original_max_position_embeddings"


class _Kind(NamedTuple):
    """What a kind of scaling needs in the config, and what it reads beside that."""

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


# transformers' kinds. A test holds them to its table, and what they need to what it refuses to build.
KINDS: Mapping[str, _Kind] = {
    "default": _Kind(()),
    "linear": _Kind(("factor",)),
    "dynamic": _Kind(("factor",)),
    "yarn": _Kind(
        ("factor",),
        (_ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": _Kind(("short_factor", "long_factor"), (_ORIGINAL, "factor", "attention_factor")),
    "llama3": _Kind(("factor", "low_freq_factor", "high_freq_factor"), (_ORIGINAL,)),
    "proportional": _Kind((), ("factor",)),
}
# Beyond the model's own length their frequencies are those of the longest row of a pass: the same row would be read
# otherwise alone, beside a longer one, and token by token.
VARYING = ("dynamic", "longrope")
_EVERYWHERE = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_NOT_NUMBERS = (*_EVERYWHERE[:2], "short_factor", "long_factor", "truncate")


class Scaling(NamedTuple):
    """A kind of scaling of rotary positions, its parameters, and the number of positions before scaling."""

    kind: str
    parameters: Mapping[str, Any]
    original: int

    def compute_length_limit(self, positions: int) -> int:
        """Returns the number of tokens that a model with so many positions in its config reads by this scaling.

        With yarn and linear it is `factor` times the original length if that is more: Qwen says to write only the
        scaling into the config, and vLLM reads it so too. A config with llama3 has the scaled length already.
        """
        factor = self.parameters.get("factor")
        if self.kind in ("yarn", "linear") and _is_number(factor):
            return max(positions, int(float(factor) * self.original))
        return min(positions, self.original) if self.kind == "longrope" else positions


def find_positions(config: Mapping[str, Any]) -> int | None:
    """Returns the number of positions that a config says. Returns None where it has no limit."""
    return next((config[name] for name in _POSITIONS if isinstance(config.get(name), int)), None)


def list_scalings(config: Mapping[str, Any]) -> list[Scaling]:
    """Returns how a model's rotary positions are scaled: once, or once for each kind of layers that has its own."""
    said = config.get(_get_name(config)) or {}
    if not isinstance(said, Mapping):
        return []
    of_layers = [part for part in said.values() if isinstance(part, Mapping)]
    return [_read_scaling(config, part) for part in of_layers or [said]]


def _get_name(config: Mapping[str, Any]) -> str:
    """Returns under which of its two names a config says the scaling. The older one counts where both are there."""
    return "rope_scaling" if config.get("rope_scaling") else "rope_parameters"


def check_rotary_scaling(config: Mapping[str, Any]) -> Iterator[str]:
    """Yields notes on the scaling of a model's rotary positions: what nothing reads, and which lengths are not read.

    Raises ValueError for a scaling that transformers does not know, or with which it would fail or compute something
    else than the config means. Of architectures without a table only lengths are said.
    """
    scalings = list_scalings(config)
    for scaling in scalings:
        if scaling.kind in VARYING:
            limit = scaling.compute_length_limit(find_positions(config) or scaling.original)
            yield (
                f"rotary positions are scaled by '{scaling.kind}', whose frequencies beyond {limit:,} tokens are those "
                "of the longest row of a pass; rows are read up to there, longer ones are refused"
            )
    if config.get("model_type") not in ARCHITECTURES:
        return
    said = config.get(_get_name(config)) or {}
    if not isinstance(said, Mapping) or any(isinstance(part, Mapping) for part in said.values()):
        raise ValueError(f"{_get_name(config)}: a {config['model_type']} model has one scaling for all of its layers")
    for scaling in scalings:
        _refuse_faults(scaling, config)
        kind = KINDS[scaling.kind]
        unread = sorted(set(scaling.parameters) - {*kind.needed, *kind.optional, *_EVERYWHERE})
        if unread:
            yield f"nothing reads {', '.join(unread)} of rotary positions of type '{scaling.kind}'"


def extend_by_yarn(config: Mapping[str, Any], yarn: Yarn) -> dict[str, Any]:
    """Returns a config.json whose rotary positions are scaled by YaRN (arXiv:2309.00071), in the form it has.

    Raises ValueError for a model whose positions are not rotary, or scaled already.
    """
    positions = find_positions(config)
    is_rotary = config.get("model_type") in ARCHITECTURES or {"rope_theta", "rope_parameters"} & set(config)
    if positions is None or not is_rotary:
        raise ValueError(f"yarn scales rotary positions, and a {config.get('model_type')} model has none")
    scaled = [scaling for scaling in list_scalings(config) if scaling.kind != "default"]
    if scaled:
        raise ValueError(
            f"yarn: config.json scales rotary positions already, by '{scaled[0].kind}' with factor "
            f"{scaled[0].parameters.get('factor')}; leave `yarn` out, or take the scaling out of config.json"
        )
    original = yarn.original_positions or positions
    if original > positions:
        raise ValueError(f"yarn.original_positions: {original:,}, and the model has {positions:,} positions")
    parameters = {"rope_type": "yarn", "factor": yarn.factor, _ORIGINAL: original}
    if isinstance(config.get("rope_parameters"), Mapping):
        return {**config, "rope_parameters": {**config["rope_parameters"], **parameters}}
    return {**config, "rope_scaling": parameters}


def _read_scaling(config: Mapping[str, Any], part: Mapping[str, Any]) -> Scaling:
    kind = part.get("rope_type", part.get("type", "default"))
    original = config.get(_ORIGINAL) or part.get(_ORIGINAL) or find_positions(config)
    return Scaling(str(kind), part, original if isinstance(original, int) else 0)


def _refuse_faults(scaling: Scaling, config: Mapping[str, Any]) -> None:
    """Raises ValueError for an unknown kind of scaling, and for parameters that are missing or make no sense."""
    kind, parameters = scaling.kind, scaling.parameters
    where = _get_name(config)
    if kind not in KINDS:
        raise ValueError(f"{where}: rotary positions of type '{kind}' are not known; known are {', '.join(KINDS)}")
    missing = [name for name in KINDS[kind].needed if parameters.get(name) is None]
    if missing:
        raise ValueError(f"{where}: rotary positions of type '{kind}' need {', '.join(missing)}")
    for name, value in parameters.items():
        if name not in _NOT_NUMBERS and value is not None and not _is_number(value):
            raise ValueError(f"{where}: {name} is {value!r}, where a number is wanted")
    factor = parameters.get("factor")
    if factor is not None and factor < 1:
        raise ValueError(f"{where}: factor is {factor}; rotary positions are stretched by 1 or more")
    positions = find_positions(config)
    if kind == "llama3" and positions is not None and scaling.original >= positions:
        raise ValueError(
            f"{where}: {_ORIGINAL} is {scaling.original:,}, and with llama3 less than the {positions:,} positions"
        )
    if kind == "longrope":
        _refuse_other_lengths(parameters, config, where)


def _refuse_other_lengths(parameters: Mapping[str, Any], config: Mapping[str, Any], where: str) -> None:
    """Raises ValueError where a list of factors has not one for each rotary frequency."""
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    n = int(size * (parameters.get("partial_rotary_factor") or 1.0)) // 2
    for name in ("short_factor", "long_factor"):
        factors = parameters[name]
        if not isinstance(factors, list) or len(factors) != n or not all(map(_is_number, factors)):
            raise ValueError(f"{where}: {name} has to be a list of {n} numbers, one for each frequency")


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
