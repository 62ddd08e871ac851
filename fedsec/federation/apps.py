"""Our own Flower apps with Keras: ordinary ones, secured with the same two lines as anyone's.

One Keras model serves all hospitals of a process and the central evaluation: ten compiled models would
cost ten first steps and 0.8 GB. Its variables are working memory and are set before every use.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from fedsec.errors import UsageError
from fedsec.federation.spending import ledger_of
from fedsec.learning.backend import keras
from fedsec.learning.evaluation import evaluate
from fedsec.learning.private.evaluation import evaluate_privately
from fedsec.learning.private.trainer import HospitalPrivacy, PrivateTrainer
from fedsec.learning.training import LocalTrainer

Examples = tuple[npt.NDArray[np.float32], npt.NDArray[np.integer]]
"""Images [N, *input shape] and labels [N]."""

PARAMETERS = "arrays"
"""The record of the model's parameters, in messages as Flower's strategies name it and in the final state."""


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """How a hospital trains; travels in the announced config, so it is the same for all.

    Attributes:
        learning_rate: Of the optimizer.
        batch_size: Examples a step.
        local_epochs: Passes over the hospital's examples in a round.
        optimizer: Its name in ``fedsec.learning.optimizers``; its state starts anew in every round.
        seed: Of the order of the examples; each hospital and round derives its own.
    """

    learning_rate: float = 5e-3
    batch_size: int = 32
    local_epochs: int = 1
    optimizer: str = "adam"
    seed: int = 1

    def record(self) -> ConfigRecord:
        """Return the config record for ``Strategy.start(train_config=...)``."""
        return ConfigRecord(
            {
                "learning-rate": self.learning_rate,
                "batch-size": self.batch_size,
                "local-epochs": self.local_epochs,
                "optimizer": self.optimizer,
                "seed": self.seed,
            }
        )

    @classmethod
    def read(cls, record: ConfigRecord) -> TrainingConfig:
        """Read what :meth:`record` made.

        Raises:
            UsageError: A key is missing, or the strategy asks for a proximal term, which is not implemented.
        """
        if record.get("proximal-mu"):
            raise UsageError("the strategy sends proximal-mu, but this app trains without a proximal term")
        try:
            return cls(
                learning_rate=float(cast(float, record["learning-rate"])),
                batch_size=int(cast(int, record["batch-size"])),
                local_epochs=int(cast(int, record["local-epochs"])),
                optimizer=str(record["optimizer"]),
                seed=int(cast(int, record["seed"])),
            )
        except KeyError as error:
            raise UsageError(f"expected the config key {error} for training, got {list(record)}") from None


def client_app(
    model: keras.Model,
    examples: Callable[[int], Examples],
    *,
    evaluation: Callable[[int], Examples] | None = None,
    privacy: HospitalPrivacy | None = None,
    mods: Sequence[Mod] = (),
) -> ClientApp:
    """Return a ClientApp that trains and evaluates ``model`` on a hospital's own examples.

    Args:
        model: A built Keras classifier; its parameters are overwritten.
        examples: Gives the examples of a partition id.
        evaluation: Gives those on which it evaluates, other records than those of the training; with
            ``privacy`` their metrics get noise and have an account of their own. When None the same; with
            ``privacy`` such orders are then refused, as the training has spent what may be told of them.
        privacy: What each hospital asks for its records; None trains without differential privacy.
        mods: Flower mods, the secure one first.
    """
    app = ClientApp(mods=list(mods))
    plain = functools.cache(functools.partial(LocalTrainer, model))
    private = functools.cache(functools.partial(PrivateTrainer, model))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        record = message.content.config_records["config"]
        config = TrainingConfig.read(record)
        how = {
            "learning_rate": config.learning_rate,
            "batch_size": config.batch_size,
            "epochs": config.local_epochs,
            "optimizer": config.optimizer,
        }
        partition = int(context.node_config["partition-id"])
        images, labels = examples(partition)
        if privacy is not None:
            trainer = private(**how, privacy=privacy)
            trained, _ = trainer.fit(_parameters(message), images, labels, ledger_of(context))
            # No metrics: they are computed from the records without any noise.
            return _answer(message, len(labels), {}, trained)
        seed = _seed(config.seed, int(cast(int, record["server-round"])), partition)
        parameters, metrics = plain(**how).fit(_parameters(message), images, labels, seed)
        return _answer(message, len(labels), metrics, parameters)

    @app.evaluate()
    def evaluate_locally(message: Message, context: Context) -> Message:
        if privacy is not None and evaluation is None:
            raise UsageError(
                "this hospital trains with differential privacy and has no examples apart for evaluation;"
                " metrics of its training records are not given"
            )
        images, labels = (evaluation or examples)(int(context.node_config["partition-id"]))
        parameters = _parameters(message)
        if privacy is not None:
            account = ledger_of(context, "evaluation")
            loss, accuracy = evaluate_privately(
                model, parameters, images, labels, privacy=privacy, ledger=account
            )
        else:
            loss, accuracy = evaluate(model, parameters, images, labels)
        return _answer(message, len(labels), {"loss": loss, "accuracy": accuracy})

    return app


def server_app(
    strategy: Strategy,
    model: keras.Model,
    test: Examples | None,
    *,
    rounds: int,
    training: TrainingConfig | None = None,
    on_round: Callable[[int, float, float], None] | None = None,
) -> ServerApp:
    """Return a ServerApp that runs ``rounds`` from the model's present parameters.

    The final parameters are in the context's state under :data:`PARAMETERS`; when no round had an average
    they are the initial ones.

    Args:
        strategy: Any Flower strategy, secured or not.
        model: A built Keras classifier; its parameters at this moment are the initial ones.
        test: Examples for the central evaluation before the first and after every round; None for none, as
            with a model that stays in shares.
        rounds: How many federated rounds.
        training: How hospitals train; the defaults when None.
        on_round: Called with (round, test loss, test accuracy), first for round 0.
    """
    app = ServerApp()
    initial = ArrayRecord(model.get_weights())

    def central(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        loss, accuracy = evaluate(model, arrays.to_numpy_ndarrays(), *(test or ()))
        if on_round is not None:
            on_round(server_round, loss, accuracy)
        return MetricRecord({"loss": loss, "accuracy": accuracy})

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        result = strategy.start(
            grid,
            initial,
            num_rounds=rounds,
            train_config=(training or TrainingConfig()).record(),
            evaluate_fn=central if test is not None else None,
        )
        context.state[PARAMETERS] = result.arrays or initial

    return app


def _parameters(message: Message) -> list[npt.NDArray[np.floating]]:
    return message.content.array_records[PARAMETERS].to_numpy_ndarrays()


def _answer(
    message: Message,
    num_examples: int,
    metrics: dict[str, float],
    parameters: list[npt.NDArray[np.float32]] | None = None,
) -> Message:
    content = RecordDict({"metrics": MetricRecord({"num-examples": num_examples, **metrics})})
    if parameters is not None:
        content[PARAMETERS] = ArrayRecord(cast("list[npt.NDArray[np.generic]]", parameters))
    return Message(content, reply_to=message)


def _seed(seed: int, server_round: int, partition: int) -> int:
    """Return a seed of its own for each hospital and round."""
    text = f"local training/{seed}/{server_round}/{partition}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
