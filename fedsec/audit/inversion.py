"""From an update back to the image: what one plain update gives, and what is left in the others.

A hospital that takes one step on one image sends, up to a known factor, the gradient of that image. The
attacker knows the model and looks for the image with such a gradient. The same attack is then given what an
aggregator holds of a secured update, and the update that DP-SGD would have sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedsec.audit.subject import Examples
from fedsec.learning.backend import keras, tf
from fedsec.learning.evaluation import gives_probabilities
from fedsec.privacy.sampling import GaussianNoise
from fedsec.ring import decode, encode
from fedsec.ring.streams import fresh_stream
from fedsec.sharing import additive

Image = npt.NDArray[np.float32]
Gradients = list[npt.NDArray[np.float64]]

STEPS = 500
_RATE = 0.05
_SMOOTHNESS = 1e-3
_START = 0.1
"""Digits are light on a dark ground, which the attacker knows; from grey the search often gets stuck."""
_AGGREGATORS = 3
_FRACTION_BITS = 24


@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """One attack's outcome.

    Attributes:
        name: What the attacker had.
        image: What it took the image to be, in [0, 1].
        correlation: With the true image; 1 is the same up to contrast, guessing gives about 0.
        psnr: Peak signal-to-noise ratio in dB; above 20 one sees the same image.
    """

    name: str
    image: Image
    correlation: float
    psnr: float


@dataclass(frozen=True, slots=True)
class Noise:
    """The DP-SGD that is compared with.

    Attributes:
        epsilon: Of a whole training.
        multiplier: Noise in units of the clip.
        clip: Bound on one gradient's norm.
    """

    epsilon: float
    multiplier: float
    clip: float


def invert(
    model: keras.Model,
    examples: Examples,
    noise: Noise,
    *,
    steps: int = STEPS,
    on_image: Callable[[], None] = lambda: None,
) -> list[tuple[Recovered, ...]]:
    """Attack the updates of some images, each of one image, three times each.

    Args:
        model: With the parameters from which the updates were made.
        examples: Images and their labels, which the attacker does not have.
        noise: Of the update with differential privacy.
        steps: Of the search, for models that do not begin with a dense layer.
        on_image: Called after each image.

    Returns:
        For each image what comes of the plain update, of an aggregator's share of it, and of the update with
        DP-SGD.
    """
    shape = (1, *examples.images.shape[1:])
    attack = _solved if _first_dense(model) is not None else _searcher(model, shape, steps)
    found = []
    for number in range(len(examples.labels)):
        one = slice(number, number + 1)
        plain = _gradients(model, Examples(examples.images[one], examples.labels[one]))
        views = {
            "one plain update": plain,
            "an aggregator's share": _share(plain),
            f"with DP-SGD, epsilon {noise.epsilon:g}": _private(plain, noise),
        }
        truth = examples.images[number]
        found.append(tuple(_judged(name, attack(model, held), truth) for name, held in views.items()))
        on_image()
    return found


def _gradients(model: keras.Model, example: Examples) -> Gradients:
    images, labels = tf.constant(example.images), tf.constant(example.labels.astype(np.int64))
    return [g.numpy().astype(np.float64) for g in _gradient(model, images, labels)]


def _gradient(model: keras.Model, images: Any, labels: Any) -> list[Any]:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=not gives_probabilities(model))
    with tf.GradientTape() as tape:
        value = loss(labels, model(images, training=False))
    return list(tape.gradient(value, model.trainable_variables))


def _share(gradients: Gradients) -> Gradients:
    """Return what one of three aggregators holds, read as numbers."""
    stream = fresh_stream()
    shares = (additive.share(encode(g, _FRACTION_BITS), _AGGREGATORS, stream)[-1] for g in gradients)
    return [decode(share, _FRACTION_BITS) for share in shares]


def _private(gradients: Gradients, noise: Noise) -> Gradients:
    """Clip and add noise as a step of DP-SGD does that drew this one record."""
    norm = float(np.sqrt(sum(np.sum(g**2) for g in gradients)))
    factor = min(1.0, noise.clip / max(norm, 1e-30))
    deviation = noise.multiplier * noise.clip
    return [factor * g + GaussianNoise(g.size).draw(deviation).reshape(g.shape) for g in gradients]


def _first_dense(model: keras.Model) -> int | None:
    """Return which variable is the kernel of a dense layer that takes the image itself, if there is one."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dense) and layer.use_bias:
            kernel = layer.kernel
            return next(n for n, v in enumerate(model.trainable_variables) if v is kernel)
        if not isinstance(layer, keras.layers.InputLayer | keras.layers.Flatten):
            return None
    return None


def _solved(model: keras.Model, held: Gradients) -> Image:
    """Return the image from a dense layer's gradients, exactly: each unit's are b_j x and b_j.

    Source: Phong et al. 2017, Privacy-preserving deep learning via additively homomorphic encryption, section
    3; all units together here, by least squares, because noise averages out over them.
    """
    place = _first_dense(model) or 0
    kernel, bias = held[place], held[place + 1]
    image = kernel @ bias / max(float(bias @ bias), 1e-30)
    return image.reshape(model.input_shape[1:]).astype(np.float32)


def _searcher(
    model: keras.Model, shape: Sequence[int], steps: int
) -> Callable[[keras.Model, Gradients], Image]:
    """Return an attack that looks for an image whose gradient points in the same direction.

    Source: Geiping et al. 2020, Inverting gradients: cosine distance, total variation, signed steps. The
    label is the class whose bias has a negative gradient (Zhao et al. 2020, iDLG).
    """
    image = tf.Variable(tf.zeros(shape))
    wanted = [tf.Variable(tf.zeros(v.shape)) for v in model.trainable_variables]
    label = tf.Variable(tf.zeros([1], tf.int64))
    optimizer = keras.optimizers.Adam(_RATE)
    optimizer.build([image])
    fresh = [variable.numpy() for variable in optimizer.variables]

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def step() -> None:
        with tf.GradientTape() as tape:
            distance = _distance(_gradient(model, image, label), wanted) + _SMOOTHNESS * _variation(image)
        optimizer.apply([tf.sign(tape.gradient(distance, image))], [image])
        image.assign(tf.clip_by_value(image, 0.0, 1.0))

    def attack(_: keras.Model, held: Gradients) -> Image:
        for variable, value in zip(optimizer.variables, fresh, strict=True):
            variable.assign(value)
        image.assign(tf.fill(shape, _START))
        label.assign([int(np.argmin(held[-1]))])
        for variable, gradient in zip(wanted, held, strict=True):
            variable.assign(gradient)
        for number in range(steps):
            # Smaller and smaller steps, three times.
            optimizer.learning_rate = _RATE * 0.3 ** sum(number >= steps * part / 8 for part in (3, 5, 7))
            step()
        found: Image = image.numpy()[0]
        return found

    return attack


def _distance(gradients: Sequence[Any], wanted: Sequence[Any]) -> Any:
    """Return one minus the cosine of all gradients as one vector; their scale does not matter."""
    product = tf.add_n([tf.reduce_sum(a * b) for a, b in zip(gradients, wanted, strict=True)])
    squares = [tf.add_n([tf.reduce_sum(g * g) for g in one]) for one in (gradients, wanted)]
    return 1.0 - product / (tf.sqrt(squares[0]) * tf.sqrt(squares[1]) + 1e-12)


def _variation(image: Any) -> Any:
    rows, columns = image[:, 1:] - image[:, :-1], image[:, :, 1:] - image[:, :, :-1]
    return tf.reduce_mean(tf.abs(rows)) + tf.reduce_mean(tf.abs(columns))


def _judged(name: str, image: Image, truth: Image) -> Recovered:
    shown = np.clip(image, 0, 1)
    error = float(np.mean((shown.astype(np.float64) - truth) ** 2))
    # An image of one grey has no correlation with anything.
    varies = float(np.std(shown)) > 0 and float(np.std(truth)) > 0
    correlation = float(np.corrcoef(shown.ravel(), truth.ravel())[0, 1]) if varies else 0.0
    return Recovered(name, shown, correlation, -10 * float(np.log10(max(error, 1e-12))))
