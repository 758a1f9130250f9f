"""The LightningModule: cross entropy, accuracy, an optimizer; its net is injected."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from sppbench.run.evaluation import evaluate

Batch = tuple[Tensor, Tensor]


class Classifier(LightningModule):
    """Trains ``net`` as a classifier of images with the mean cross entropy over the batch.

    Logged once an epoch: ``train/loss``, ``train/accuracy``, ``val/loss``, ``val/accuracy``, ``val/top5``; after the
    test ``test/loss``, ``test/accuracy``, ``test/top5``. Losses in nats, accuracies in percent. The training values are
    means over the epoch's images, each taken before the step that its batch causes, with the augmentation and dropout
    of training. ``train/loss_step`` and ``train/accuracy_step`` are those of single batches, logged every
    ``log_every_n_steps`` steps.

    Args:
        net: Maps images (N, C, H, W), float32, to logits (N, num_classes).
        optimizer: Makes the optimizer from the net's parameters, as ``functools.partial(torch.optim.Adam, lr=1e-3)``.
        num_classes: Number of classes; top-5 becomes top-``num_classes`` where there are fewer than five.
    """

    def __init__(
        self, net: nn.Module, optimizer: Callable[[Iterable[nn.Parameter]], Optimizer], num_classes: int
    ) -> None:
        super().__init__()
        self.net = net
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self._whole_batch = 0  # images in the largest batch so far
        self.make_optimizer = optimizer
        self.train_loss, self.val_loss, self.test_loss = MeanOverImages(), MeanOverImages(), MeanOverImages()
        self.train_accuracy = MeanOverImages()
        self.val_accuracy, self.val_top5 = _accuracy(num_classes), _accuracy(num_classes, top_k=5)
        self.test_accuracy, self.test_top5 = _accuracy(num_classes), _accuracy(num_classes, top_k=5)
        self.test_per_class = _accuracy(num_classes, average="none")
        self.test_logits = LogitSummary(num_classes)
        # Of the last validation and the last test: accuracy and top5 (percent), loss (None if not finite); of the test
        # also per_class and what LogitSummary computes.
        self.val_scores: dict[str, Any] | None = None
        self.test_scores: dict[str, Any] | None = None
        # Of the tested weights on training images without augmentation, see `evaluate`.
        self.training_scores: dict[str, Any] | None = None
        self.scores: dict[str, float] = {}  # what was logged of the current epoch, under the logged names
        self._random_state: dict[str, Any] | None = None

    def configure_optimizers(self) -> Optimizer:
        return self.make_optimizer(self.net.parameters())

    def compile_training(self, **how: Any) -> None:
        """Compiles the net for whole batches of training, and for nothing else; ``mode`` or ``options`` as in
        ``torch.compile``.

        The last batch of an epoch, if it is smaller, validation and test would each take a graph of its own, a minute
        of compiling for a few batches. They run as without.
        """
        # Of the earlier runs of a sweep in this process: after eight nets Dynamo would no longer compile any.
        torch.compiler.reset()
        # A function, as the net itself would be a module of this one a second time.
        self._compiled = torch.compile(lambda images: self.net(images), dynamic=False, **how)

    def forward(self, images: Tensor) -> Tensor:
        call: Callable[[Tensor], Tensor] = self.net
        if self._compiled is not None and self.training:
            self._whole_batch = max(self._whole_batch, len(images))
            if len(images) == self._whole_batch:
                call = self._compiled
        return call(images)

    def on_train_epoch_start(self) -> None:
        self.scores = {}

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        images, labels = batch
        logits = self(images)
        loss = F.cross_entropy(logits, labels)
        accuracy = (logits.detach().argmax(1) == labels).mean(dtype=torch.float64)
        self.train_loss.update(loss, len(labels))
        self.train_accuracy.update(accuracy, len(labels))
        return {"loss": loss, "accuracy": 100 * accuracy}

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        # Only in the steps whose values Lightning hands to the loggers: `log` is most of what it adds to a step.
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (every and self.trainer.global_step % every == 0) or self.trainer.should_stop:
            self.log_dict({f"train/{name}_step": value.detach() for name, value in outputs.items()})
        if self.trainer.is_last_batch or self.trainer.should_stop:
            self._report({"train/loss": self.train_loss, "train/accuracy": self.train_accuracy})
            self.train_loss.reset()
            self.train_accuracy.reset()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.val_loss.update(F.cross_entropy(logits, labels), len(labels))
        self.val_accuracy.update(logits, labels)
        self.val_top5.update(logits, labels)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return
        metrics = {"val/loss": self.val_loss, "val/accuracy": self.val_accuracy, "val/top5": self.val_top5}
        self.val_scores = {
            "accuracy": _percent(self.val_accuracy.compute()),
            "top5": _percent(self.val_top5.compute()),
            "loss": _finite(self.val_loss.compute()),
        }
        self._report(metrics)
        for metric in metrics.values():
            metric.reset()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.test_loss.update(F.cross_entropy(logits, labels), len(labels))
        for metric in (self.test_accuracy, self.test_top5, self.test_per_class):
            metric.update(logits, labels)
        self.test_logits.update(logits)

    def on_test_start(self) -> None:
        # All processes would compute the same. In this hook the net is where the data is, and in evaluation mode.
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.trainer.is_global_zero and hasattr(data, "training_evaluation_dataloader"):
            self.training_scores = evaluate(self.net, data.training_evaluation_dataloader())

    def on_test_epoch_end(self) -> None:
        # Here, where all processes of a distributed run pass: computing a metric adds up over them.
        self.test_scores = {
            "accuracy": _percent(self.test_accuracy.compute()),
            "top5": _percent(self.test_top5.compute()),
            "loss": _finite(self.test_loss.compute()),
            "per_class": [_percent(value) for value in self.test_per_class.compute()],
            **self.test_logits.compute(),
        }
        self._report({"test/loss": self.test_loss, "test/accuracy": self.test_accuracy, "test/top5": self.test_top5})

    def _report(self, metrics: dict[str, Metric]) -> None:
        """Hands values to callbacks and, at once, to the loggers.

        ``self.log`` alone would reach the loggers after the epoch's checkpoint is written. What a checkpoint has seen
        must be on disk before it, so that a resumed run continues its metrics without a gap.
        """
        values = {name: metric.compute() for name, metric in metrics.items()}
        values = {name: value if name.endswith("loss") else 100 * value for name, value in values.items()}
        self.log_dict(values, on_step=False, on_epoch=True, logger=False, sync_dist=self.trainer.world_size > 1)
        found = {name: float(value) for name, value in values.items()}
        self.scores |= found
        step = self.trainer.global_step if self.trainer.testing else self.trainer.global_step - 1
        for logger in self.loggers:
            logger.log_metrics({"epoch": self.current_epoch, **found}, step=step)
            logger.save()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what Lightning does not keep: the state of the random generators (dropout draws from them), and the
        sums of an epoch that is not yet over."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        checkpoint["random_state"] = {"cpu": torch.get_rng_state(), "cuda": cuda}
        checkpoint["val_scores"] = self.val_scores
        checkpoint["train_metrics"] = {
            name: {key: torch.as_tensor(value).cpu().clone() for key, value in metric.metric_state.items()}
            for name, metric in self._train_metrics().items()
            if metric.update_called
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._random_state = checkpoint["random_state"]
        # Which kernels an optimizer uses is this run's choice, not that of the one that wrote the checkpoint.
        fused = self.configure_optimizers().defaults.get("fused")
        for state in checkpoint["optimizer_states"]:
            for group in state["param_groups"]:
                if "fused" in group:
                    group["fused"] = fused
        self.val_scores = checkpoint["val_scores"]
        for name, state in checkpoint["train_metrics"].items():
            metric = self._train_metrics()[name]
            for key, value in state.items():
                setattr(metric, key, value.to(metric.device))
            metric._update_count = 1  # there have been updates: `compute` must not warn

    def on_train_start(self) -> None:
        # Not in on_load_checkpoint: what Lightning sets up after it might draw random numbers.
        if self._random_state is not None:
            torch.set_rng_state(self._random_state["cpu"])
            if len(self._random_state["cuda"]) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all(self._random_state["cuda"])
            self._random_state = None

    def _train_metrics(self) -> dict[str, Metric]:
        return {"loss": self.train_loss, "accuracy": self.train_accuracy}


class MeanOverImages(Metric):
    """The mean over images of what are means over batches; not a number as soon as one of them is not.

    torchmetrics' ``MeanMetric`` either leaves such a value out or, if asked not to, leaves weights
    out (its issue 3434).
    """

    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, mean: Tensor, images: int) -> None:
        """Takes the mean () over a batch, and its number of images."""
        self.total += mean.detach().double() * images
        self.count += images

    def compute(self) -> Tensor:
        return (self.total / self.count).float()


class LogitSummary(Metric):
    """Distinguishes a dead net from one that predicts: the study's "1.0 ± 0.0" is either NaN or one constant class.

    ``compute`` gives ``classes_predicted`` (number of classes that are the argmax of at least one image),
    ``logit_std`` (standard deviation over the images, root mean square over the classes; None if not finite) and
    ``logits_finite``.
    """

    predicted: Tensor
    total: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        zeros = torch.zeros(num_classes, dtype=torch.float64)
        self.add_state("predicted", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("total", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("square", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor) -> None:
        """Takes logits (N, num_classes)."""
        logits = logits.detach().to(torch.float64)
        self.predicted += F.one_hot(logits.argmax(1), logits.shape[1]).sum(0)
        self.total += logits.sum(0)
        self.square += logits.square().sum(0)
        self.count += len(logits)

    def compute(self) -> dict[str, Any]:
        variance = (self.square / self.count - (self.total / self.count) ** 2).clamp_min(0)
        std = float(variance.mean().sqrt())
        finite = bool(torch.isfinite(self.square).all())
        return {
            "classes_predicted": int((self.predicted > 0).sum()),
            "logit_std": std if finite else None,
            "logits_finite": finite,
        }


def _accuracy(num_classes: int, top_k: int = 1, average: str = "micro") -> Any:
    return MulticlassAccuracy(num_classes, top_k=min(top_k, num_classes), average=average, validate_args=False)  # type: ignore[arg-type]


def _finite(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None


def _percent(fraction: Tensor) -> float | None:
    if not fraction.isfinite():
        return None
    return round(100 * float(fraction), 4)  # torchmetrics divides in single precision
