"""Reading saved Keras models, with nothing in the file able to run code.

A saved model names the Python classes and functions to rebuild it from. Its configuration is looked at
before Keras sees it, and only the parts that Keras builds models from are let through.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from fedsec.errors import FedsecError, UnsupportedModelError, UsageError
from fedsec.learning.backend import keras

_CONFIG_BYTES = 16 << 20
"""More than any sensible configuration; a larger one is refused before it is read."""

# Homes of what a model is built from. The rest of Keras holds functions that fetch or write files.
_MODULES = {
    "keras",
    "keras.activations",
    "keras.constraints",
    "keras.initializers",
    "keras.layers",
    "keras.regularizers",
}

# Functional models and the arithmetic of their tensors have no public home: each by its own name.
_OPERATIONS = {
    "keras.src.activations.activations": {"ReLU"},
    "keras.src.models.functional": {"Functional"},
    "keras.src.ops.nn": {
        "Elu", "Gelu", "HardSigmoid", "HardSilu", "HardTanh", "LeakyRelu", "Relu", "Relu6", "Selu", "Sigmoid",
        "Silu", "Softmax", "Softplus",
    },
    "keras.src.ops.numpy": {"Add", "Divide", "Multiply", "Negative", "Subtract", "Tanh", "TrueDivide"},
}  # fmt: skip


def load_keras(path: Path | str) -> keras.Model:
    """Load a model saved by ``model.save``, without its optimizer and loss.

    Args:
        path: A ``.keras`` or ``.h5`` file.

    Raises:
        UsageError: If the file is missing or is no saved model.
        UnsupportedModelError: If it refers to code outside of Keras, or to a Lambda.
    """
    file = Path(path)
    if not file.exists():
        raise UsageError(f"there is no run folder and no model file at {file}")
    if file.suffix not in {".keras", ".h5"} or not file.is_file():
        raise UsageError(
            f"expected a model saved as .keras or .h5, got {file}: save it with model.save(path)"
        )
    try:
        config = _config_of_zip(file) if file.suffix == ".keras" else _config_of_h5(file)
        _check(config, file)
        return keras.models.load_model(file, compile=False, safe_mode=True)
    except FedsecError:
        raise
    except Exception as error:
        # What a damaged file makes Keras, h5py, zipfile and zlib raise has no common class.
        raise UsageError(
            f"{file} cannot be loaded: it is damaged, or model.save did not write it ({type(error).__name__})"
        ) from error


def _config_of_zip(file: Path) -> Any:
    with zipfile.ZipFile(file) as archive:
        if archive.getinfo("config.json").file_size > _CONFIG_BYTES:
            raise UsageError(
                f"the configuration in {file} has more than {_CONFIG_BYTES} bytes: no model of ours"
            )
        config = json.loads(archive.read("config.json"))
    # The optimizer and the loss are not loaded; own classes there do no harm.
    config.pop("compile_config", None)
    return config


def _config_of_h5(file: Path) -> Any:
    import h5py  # type: ignore[import-untyped]  # noqa: PLC0415 - Keras brings it, without types; one format needs it

    with h5py.File(file, "r") as content:
        return json.loads(content.attrs["model_config"])


def _check(config: Any, file: Path) -> None:
    """Walk through a configuration and refuse what is not Keras' own."""
    if isinstance(config, dict):
        module, name = config.get("module") or "keras", config.get("class_name")
        known = module in _MODULES or name in _OPERATIONS.get(module, ())
        if name in {"Lambda", "__lambda__", "function"} or not known:
            raise UnsupportedModelError(
                f"{file} refers to {name!r} of {module!r}: code from a file is never run;"
                " build the model of Keras' own layers only"
            )
    if isinstance(config, dict | list):
        for value in config.values() if isinstance(config, dict) else config:
            _check(value, file)
