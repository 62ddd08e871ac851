"""``make_private``: the same Keras model, whose ``fit`` is DP-SGD.

Source: Abadi et al. 2016, Deep learning with differential privacy. Each step takes a Poisson sample of the
records, clips every record's gradient, adds Gaussian noise to the sum, divides by the *expected* size of the
sample (the realised one depends on who is in it), and hands the result to any Keras optimizer.
"""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedsec.errors import UsageError
from fedsec.learning.backend import keras, tf
from fedsec.learning.private.batches import PoissonBatches, first_batch, records_of, weighted
from fedsec.learning.private.clipping import Batch, Clipped, clipped_one_by_one, clipped_sum
from fedsec.learning.private.guards import UnderWay, check_independence, check_state, state_of
from fedsec.learning.private.network import Network, examined
from fedsec.privacy.accounting import SampledGaussian
from fedsec.privacy.budget import Budget, PrivacyReport, PrivacySettings
from fedsec.privacy.sampling import GaussianNoise

_LOADED = "this model was loaded from a file: call make_private on it to train it"
_CHUNK = 2
"""A sample larger than this times the expected one is taken in chunks, so that memory stays bounded."""


def make_private(
    model: keras.Model,
    *,
    l2_norm_clip: float = 1.0,
    noise_multiplier: float | None = None,
    target_epsilon: float | None = None,
    delta: float = 1e-5,
) -> PrivateModel:
    """Return a model that shares the given one's layers and trains with differential privacy.

    Args:
        model: A built Sequential or functional classifier, or any Keras model with known inputs and outputs.
        l2_norm_clip: Bound on the norm of one record's gradient over all variables together.
        noise_multiplier: Standard deviation of the noise in units of the clip. Either this or
        target_epsilon: Epsilon that all training of the model together may cost; the noise follows from it.
        delta: At which epsilon holds; at most one over the number of records makes sense.

    Returns:
        A Keras model: ``compile`` and ``fit`` as ever, ``privacy()`` says what it has cost.

    Raises:
        UsageError: The settings do not fit together.
        UnsupportedModelError: A layer joins the examples of a batch; the text says what to use instead.
    """
    settings = PrivacySettings(
        l2_norm_clip=l2_norm_clip,
        noise_multiplier=noise_multiplier,
        target_epsilon=target_epsilon,
        delta=delta,
    )
    if not model.built or not getattr(model, "inputs", None):
        raise UsageError("expected a built model: begin it with keras.Input(shape)")
    network = examined(model)
    if network.uncovered:
        warnings.warn(
            f"{network.uncovered}: gradients are taken one example after the other, which is right and 10 to"
            " 100 times slower",
            stacklevel=2,
        )
    private = PrivateModel(inputs=_alone(model.inputs), outputs=_alone(model.outputs), name=model.name)
    account = _ACCOUNTS.get(model)
    budget = Budget(settings) if account is None else account.under(settings)
    private.begin(budget, network)
    # The same parameters under other settings, or made private again, have spent what they have spent.
    _ACCOUNTS[model] = _ACCOUNTS[private] = budget
    return private


@keras.saving.register_keras_serializable(package="fedsec")
class PrivateModel(keras.Model):  # type: ignore[misc]
    """A functional Keras model whose training steps are those of DP-SGD; made by :func:`make_private`.

    Loaded from a file it predicts and evaluates, but does not train: what its training had cost is not in the
    file.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._budget: Budget | None = None
        self._network: Network | None = None
        self._loss_function: Any = None
        self._noise = GaussianNoise(sum(math.prod(v.shape) for v in self.trainable_variables))
        self._expected = 0
        self._under_way: UnderWay | None = None

    def begin(self, budget: Budget, network: Network) -> None:
        """Set what the training is to keep to."""
        self._budget, self._network = budget, network

    def compile(self, optimizer: Any = "rmsprop", loss: Any = None, **options: Any) -> None:
        """Configure as ``keras.Model.compile`` does.

        Raises:
            UsageError: The loss cannot be taken an example at a time, or XLA is asked for.
        """
        if options.get("jit_compile") is True:
            raise UsageError("jit_compile=True is not possible: the noise comes from outside the graph")
        if options.get("loss_weights") is not None or isinstance(loss, dict | list | tuple):
            raise UsageError("expected one loss for one output: per-example losses of several are not summed")
        options["jit_compile"] = False
        super().compile(optimizer=optimizer, loss=loss, **options)
        self._loss_function = keras.losses.get(loss) if loss is not None else None

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as a saved model was; Keras asks for it where ``compile`` is overridden."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        *,
        validation_split: float = 0.0,
        validation_data: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        **options: Any,
    ) -> keras.callbacks.History:
        """Train as ``keras.Model.fit`` does, with a Poisson sample of expected size ``batch_size`` a step.

        An epoch is N / batch_size steps. With a ``tf.data`` pipeline nothing can be sampled: its batches are
        taken as they are, and the report assumes that each record is in one batch an epoch.

        Raises:
            UsageError: An option has no meaning here, or the target epsilon is used up.
        """
        self._refuse(options)
        if isinstance(x, tf.data.Dataset):
            batches, under_way = self._from_pipeline(x, y, epochs - initial_epoch, steps_per_epoch)
        else:
            if validation_split:
                x, y, validation_data = _split(x, y, validation_split)
            batches, under_way = self._from_arrays(
                x, y, 32 if batch_size is None else batch_size, epochs - initial_epoch, steps_per_epoch
            )
        before = state_of(self)
        self._under_way = under_way
        try:
            return super().fit(
                batches,
                epochs=epochs,
                initial_epoch=initial_epoch,
                validation_data=validation_data,
                steps_per_epoch=None if isinstance(batches, PoissonBatches) else steps_per_epoch,
                **options,
            )
        finally:
            self._under_way = None
            check_state(before)

    def train_on_batch(self, *_args: Any, **_kwargs: Any) -> Any:
        """Refuse: who chooses a batch decides how likely a record is in it, and nothing would be accounted.

        Raises:
            UsageError: Always.
        """
        raise UsageError("train_on_batch is not possible with privacy: fit draws each step's sample itself")

    def privacy(self) -> PrivacyReport:
        """Return what training has cost so far.

        Raises:
            UsageError: The model was loaded from a file.
        """
        return self._required_budget().report()

    def train_step(self, data: Any) -> dict[str, Any]:
        """Take one step: clip, add noise, divide by the expected size, let the optimizer move."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        total = self._sum(x, y, weights)
        noise = tf.numpy_function(self._draw, [], keras.config.floatx(), stateful=True)
        variables = self.trainable_variables
        sizes = [math.prod(variable.shape) for variable in variables]
        pieces = tf.split(tf.ensure_shape(noise, [sum(sizes)]), sizes)
        gradients = [
            (gradient + tf.reshape(piece, gradient.shape)) / tf.cast(self._expected, gradient.dtype)
            for gradient, piece in zip(total, pieces, strict=True)
        ]
        self.optimizer.apply(gradients, variables)
        return self.get_metrics_result()  # type: ignore[no-any-return]

    def _sum(self, x: Any, y: Any, weights: Any) -> list[Any]:
        """Return the clipped sum of a sample, taken in chunks when it is large; nothing is dropped."""
        limit = _CHUNK * self._expected
        count = tf.shape(weights)[0]
        # Whatever comes as a weight, a record counts once or not at all.
        weights = tf.cast(weights > 0, weights.dtype)

        def chunk(start: Any, total: list[Any]) -> tuple[Any, list[Any]]:
            x_part, y_part, weights_part = (
                keras.tree.map_structure(lambda values: values[start : start + limit], tree)
                for tree in (x, y, weights)
            )
            batch = Batch(x_part, y_part, weights_part)
            clipped = self._clipped(batch)
            self._measure(batch, clipped)
            return start + limit, [a + b for a, b in zip(total, clipped.gradients, strict=True)]

        zeros = [tf.zeros(variable.shape, variable.dtype) for variable in self.trainable_variables]
        _, total = tf.while_loop(lambda start, _: start < count, chunk, (tf.constant(0), zeros))
        return total  # type: ignore[no-any-return]

    def _clipped(self, batch: Batch) -> Clipped:
        clip = self._required_budget().settings.l2_norm_clip
        if self._network is None:
            raise UsageError(_LOADED)
        way = clipped_one_by_one if self._network.uncovered else clipped_sum
        return way(self._network, self._loss_each, batch, clip)

    def _loss_each(self, y: Any, answers: Any) -> Any:
        loss = self._loss_function
        values = loss.call(y, answers) if isinstance(loss, keras.losses.Loss) else loss(y, answers)
        if not len(values.shape):
            raise UsageError("expected a loss that gives one value an example, this one gives one for all")
        # As Keras averages: over all that one example has.
        return (
            tf.reduce_mean(values, axis=list(range(1, len(values.shape))))
            if len(values.shape) > 1
            else values
        )

    def _measure(self, batch: Batch, clipped: Clipped) -> None:
        # What fills up has a weight of 0, which not-a-number survives.
        losses = tf.where(batch.weights > 0, clipped.losses, tf.zeros_like(clipped.losses))
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(losses, sample_weight=batch.weights)
        self.compute_metrics(batch.x, batch.y, clipped.answers, sample_weight=batch.weights)

    def _draw(self) -> np.ndarray[Any, Any]:
        """Account for a step and return its noise, in the order of the trained variables.

        Every step of every kind passes here exactly once, however many Keras puts into one execution.
        """
        if self._under_way is None:
            raise UsageError("no fit is under way: a step outside it would not be accounted")
        budget = self._required_budget()
        self._under_way.step(budget)
        deviation = self._under_way.mechanism.noise_multiplier * budget.settings.l2_norm_clip
        return self._noise.draw(deviation).astype(keras.config.floatx())

    # What fit prepares.

    def _from_arrays(
        self, x: Any, y: Any, batch_size: int, epochs: int, steps_per_epoch: int | None
    ) -> tuple[PoissonBatches, UnderWay]:
        if batch_size < 1:
            raise UsageError(f"batch_size is the expected size of a sample, at least 1, got {batch_size}")
        x, y = (keras.tree.map_structure(np.asarray, part) for part in (x, y))
        records = records_of(x, y)
        self._probe(x, y)
        steps = steps_per_epoch or math.ceil(records / batch_size)
        mechanism = self._prepared(min(1.0, batch_size / records), steps * epochs, batch_size)
        return PoissonBatches(x, y, batch_size, steps), UnderWay(mechanism, pass_steps=1)

    def _from_pipeline(
        self, dataset: tf.data.Dataset, y: Any, epochs: int, steps_per_epoch: int | None
    ) -> tuple[tf.data.Dataset, UnderWay]:
        if y is not None:
            raise UsageError("a tf.data pipeline brings its labels: leave y out")
        if self._required_budget().settings.target_epsilon is not None:
            raise UsageError(
                "target_epsilon needs Poisson sampling, which a tf.data pipeline cannot do: pass arrays x and"
                " y, or give noise_multiplier and read what privacy() reports without amplification"
            )
        count = int(dataset.cardinality())
        if count <= 0:
            raise UsageError(
                "the pipeline does not say how many batches one pass over the records has, so visits of a"
                " record cannot be counted: leave out repeat() and filters, or pass arrays x and y"
            )
        first_x, first_y = first_batch(dataset)
        self._probe(first_x, first_y)
        passes = math.ceil((steps_per_epoch or count) * epochs / count)
        mechanism = self._prepared(1.0, passes, len(keras.tree.flatten(first_y)[0]))
        return weighted(dataset), UnderWay(mechanism, pass_steps=count)

    def _probe(self, x: Any, y: Any) -> None:
        # One example after the other has no others.
        if self._network is not None and not self._network.uncovered:
            check_independence(self, self._loss_each, x, y)

    def _prepared(self, rate: float, steps: int, expected: int) -> SampledGaussian:
        mechanism = self._required_budget().plan(rate, max(1, steps))
        if expected != self._expected:
            # It is a constant of the traced step.
            self._expected = expected
            self.train_function = None
        return mechanism

    def _required_budget(self) -> Budget:
        if self._budget is None:
            raise UsageError(_LOADED)
        return self._budget

    def _refuse(self, options: dict[str, Any]) -> None:
        self._required_budget()
        if self._loss_function is None:
            raise UsageError("call compile(optimizer, loss) before fit")
        for name in ("class_weight", "sample_weight"):
            if options.pop(name, None) is not None:
                raise UsageError(f"{name} is not possible: it would change how much one record can move")
        # The order of a Poisson sample says nothing, and a pipeline brings its own.
        options["shuffle"] = False


_ACCOUNTS: weakref.WeakKeyDictionary[keras.Model, Budget] = weakref.WeakKeyDictionary()
"""What the parameters of each model have cost, by the given model and by the private one."""


def _alone(tensors: Sequence[Any]) -> Any:
    """Return what a model is called with: one tensor, or several in a list."""
    return tensors[0] if len(tensors) == 1 else list(tensors)


def _split(x: Any, y: Any, share: float) -> tuple[Any, Any, tuple[Any, Any]]:
    """Set the last examples aside, as Keras does."""
    if not 0 < share < 1:
        raise UsageError(f"validation_split is above 0 and below 1, got {share}")
    kept = int(records_of(x, y) * (1 - share))
    if kept < 1:
        raise UsageError("validation_split leaves no example to train on")
    first, last = (
        [
            keras.tree.map_structure(lambda values, part=part: np.asarray(values)[part], tree)
            for tree in (x, y)
        ]
        for part in (slice(None, kept), slice(kept, None))
    )
    return first[0], first[1], (last[0], last[1])
