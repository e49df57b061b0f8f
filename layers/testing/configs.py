"""`get_config`: enough to make the same layer, and true: it says what the layer was made with, not what layers are usually made with."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import keras

from layers.testing.case import Case, agree, copy_state

__all__ = ["config"]

#: Words that constructors take, by the end of the argument's name; the first one that is accepted and new is tried.
WORDS: dict[str, tuple[str, ...]] = {
    "initializer": ("ones", "zeros"),
    "regularizer": ("l2", "l1"),
    "constraint": ("non_neg", "unit_norm"),
    "activation": ("tanh", "relu"),
    "padding": ("same", "valid"),
    "data_format": ("channels_first", "channels_last"),
    "mode": ("concat", "ave", "sum"),
}


def config(case: Case) -> str | None:
    """`get_config` is enough to make the same layer, and follows the arguments."""
    layer = case.layer
    kind, found = type(layer), layer.get_config()
    names = [p.name for p in _parameters(kind)]
    if "complete_config" in case.rules:
        missing = sorted({*names, "name", "trainable", "dtype"} - {*found})
        assert not missing, f"get_config() lacks {missing}"
    _assert_round_trip(case, layer)
    for name in names:
        _assert_follows(case, name, found)
    return None


def _assert_round_trip(case: Case, layer: keras.layers.Layer) -> None:
    kind = type(layer)
    text = json.dumps(keras.saving.serialize_keras_object(layer))
    copy = keras.saving.deserialize_keras_object(json.loads(text), custom_objects={kind.__name__: kind})
    assert type(copy) is kind, f"the config made a {type(copy).__name__}"
    again = json.dumps(keras.saving.serialize_keras_object(copy)["config"], sort_keys=True)
    first = json.dumps(keras.saving.serialize_keras_object(layer)["config"], sort_keys=True)
    assert first == again, f"the config changes on the way: {first} became {again}"
    assert copy.name == layer.name, f"a layer named {layer.name!r} comes back from its config as {copy.name!r}"
    symbols, _ = case.batch.symbols()
    case.call(copy, symbols, False)
    copy_state(layer, copy)
    for training in case.trainings():
        seen = case.measure(copy, training=training, gradients=False)
        agree(case.eager(training, gradients=False), seen, "a layer made from the config")


def _assert_follows(case: Case, name: str, found: dict[str, Any]) -> None:
    """A layer made with another value of an argument has another config."""
    default = next(p.default for p in _parameters(type(case.layer)) if p.name == name)
    value = found.get(name, None if default is inspect.Parameter.empty else default)
    for other in _others(name, value):
        try:
            changed = case.factory(**{name: other}).get_config()
        except Exception:  # the constructor refuses the value: it is none to try
            continue
        if name in found:
            same = _text(changed.get(name)) == _text(found[name])
            assert not same, f"get_config() says {name}={_text(found[name])} of a layer that was made with {name}={other!r}"
        else:
            same = _text({**changed, "name": ""}) == _text({**found, "name": ""})
            assert not same, f"get_config() lacks {name!r}: a layer that was made with {name}={other!r} comes back without it"
        return


def _others(name: str, value: Any) -> Iterator[Any]:
    """Other values of the same kind; none where the kind is not plain."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, value + 2, 2 * value)
    elif isinstance(value, float):
        yield from (value / 2 + 0.125, value + 0.25, value / 2)
    elif isinstance(value, (list, tuple)) and value and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in value):
        yield type(value)(v + 1 for v in value)
        yield type(value)(v / 2 for v in value)
    elif isinstance(value, (str, dict)) or (value is None and name.endswith(tuple(WORDS))):
        known = next((words for end, words in WORDS.items() if name.endswith(end)), ())
        yield from (word for word in known if word != value and not (isinstance(value, dict) and _means(value, word)))


def _means(serialized: dict[str, Any], word: str) -> bool:
    return str(serialized.get("class_name", "")).lower() == word.replace("_", "")


def _parameters(kind: type) -> list[inspect.Parameter]:
    parameters = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    return [p for p in parameters if p.name != "self" and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=repr)
