"""The trained network: loss, metrics and optimizer. Knows no files, no W&B and no cache."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from finetune.network.network import Network
from finetune.records.correct import pack
from finetune.records.metric import sign_of, with_best
from finetune.trial.figures import Figures, Losses
from finetune.trial.graphs import GraphedSteps, round_rates
from finetune.trial.metrics import measure
from finetune.trial.steps import Steps

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From images and labels to mixed ones, as `data.augment.build_mix` builds it."""


class FineTune(pl.LightningModule):
    """A network that is trained, on batches of normalised images N x 3 x H x W, or of activations, and labels N.

    Logs `train/loss`, `train/acc`, `val/loss`, `val/acc`, `val/acc_best`, `lr` and `test/acc` once an epoch, and the
    metric that it follows, where that is another; accuracies are top-1, 0..1. `history` holds the same, one dict per
    epoch. The best epoch is the first that is best by that metric; `val/acc_best` is its accuracy.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        network: Network,
        optimizer: Callable[[Network], torch.optim.Optimizer],
        schedule: Callable[[float], float] = lambda progress: 1.0,
        label_smoothing: float = 0.0,
        stored: frozenset[str] = frozenset(),
        metric: str = "val/acc",
        class_weights: list[float] | None = None,
        rates: Mapping[str, float] = MappingProxyType({}),
        mix: Mix | None = None,
        steps: Steps | None = None,
        by_graph: bool = False,
    ):
        """`schedule` maps training progress, 0..1, to a factor on the optimizer's learning rate.

        The batches of the `stored` splits, of `train`, `val` and `test`, are what the prefix would have made of them.
        `metric`, one of `config.METRICS`, chooses the best epoch. `class_weights` are those of the training loss alone,
        so that `val/loss` compares trials of any. `rates` are logged beside `lr`, as factors on it.
        `mix` makes of a training batch another, whose labels are shares of the classes, N x classes.
        `steps` says what a training batch is made of; without it, each is one optimizer step.
        `by_graph` lets a GPU take steps as one CUDA graph, where it does the same.
        """
        super().__init__()
        self.network = network
        self.build_optimizer, self.schedule, self.label_smoothing = optimizer, schedule, label_smoothing
        self.metric, self.rates, self._mix, self.steps = metric, rates, mix, steps
        self._by_graph = by_graph
        self._graphs: GraphedSteps | None = None
        self._total_steps = 1
        self._scaler = torch.amp.GradScaler("cpu", enabled=False)
        """Multiplies losses in fp16, whose small gradients would else be 0; does nothing in other formats."""
        self.register_buffer(
            "class_weights", None if class_weights is None else torch.tensor(class_weights), persistent=False
        )
        self._logits = {
            split: network.after_cut if split in stored else network.forward for split in ("train", "val", "test")
        }

        self.train_figures, self.val_figures, self.test_figures = (Figures() for _ in range(3))
        self.history: list[dict[str, float]] = []
        self.best_epoch = -1
        self.best_state: dict[str, Tensor] = {}
        self.best_probabilities = torch.empty(0)
        """The best epoch's, for the validation images in order: N x classes, float32, on the CPU."""
        self.correct: list[str] = []
        """Which validation images were right, in order, for each epoch of `history`, as `records.correct` packs it."""
        self._epoch_logits: list[Tensor] = []
        self._epoch_labels: list[Tensor] = []
        self._losses = Losses()
        self._learning_rate = 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Logits, N x classes."""
        return torch.as_tensor(self.network(x))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch, or of the last part of one that makes several steps; the others are taken here.

        Raises:
            FloatingPointError: a step before gave a loss that is not finite.
        """
        x, y = batch
        images = self.steps.images if self.steps else len(y)
        *earlier, last = zip(x.split(images), y.split(images), strict=True)
        for part in earlier:
            self._take_step(*part)

        self._refuse_divergence()
        loss = self._step_by_graph(*last)
        if loss is None:
            loss = self._training_loss(*last)
        self._note(loss, len(last[1]))
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """The gradients of a loss; none where a graph has taken the step, and so nothing for the optimizer to do."""
        if loss.requires_grad:
            super().backward(loss, *args, **kwargs)

    def _take_step(self, x: Tensor, y: Tensor) -> None:
        """What Lightning does with a batch, without what it does around that."""
        self._refuse_divergence()
        loss = self._step_by_graph(x, y)
        if loss is None:
            loss = self._step(x, y)
        self._note(loss, len(y))
        self._scheduler.step()
        self._remember_rate()

    def _step(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a batch, and all that a GPU does with it."""
        optimizer = self.trainer.optimizers[0]
        loss = self._training_loss(x, y)
        optimizer.zero_grad()
        with torch.autocast(loss.device.type, enabled=False):  # which Lightning has left by then, too
            self._scaler.scale(loss).backward()
        self.configure_gradient_clipping(optimizer, self.trainer.gradient_clip_val)
        self._scaler.step(optimizer)
        self._scaler.update()
        torch.clear_autocast_cache()  # in which some releases of Lightning keep rounded weights to the end of a batch
        return loss.detach()

    def _step_by_graph(self, x: Tensor, y: Tensor) -> Tensor | None:
        """The loss of a step that the GPU has taken as one graph; None where it is to be taken without."""
        return None if self._graphs is None else self._graphs.take(x, y, self._total_steps - self._scheduler.last_epoch)

    @property
    def _scheduler(self) -> LambdaLR:
        scheduler = self.trainer.lr_scheduler_configs[0].scheduler
        assert isinstance(scheduler, LambdaLR)
        return scheduler

    def _training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        if self._mix is not None:
            x, y = self._mix(x, y)
        logits = self._logits["train"](x)
        loss = F.cross_entropy(logits, y, self.class_weights, label_smoothing=self.label_smoothing)
        self.train_figures.add(loss.detach(), logits.detach(), y if y.ndim == 1 else y.argmax(1))
        return loss

    def _note(self, loss: Tensor, images: int) -> None:
        self._losses.note(loss.detach())
        self.train_figures.count += images

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """By norm; Lightning's refuses a fused optimizer in 16 bits, which divides scaled gradients by itself."""
        if gradient_clip_val:
            self._scaler.unscale_(optimizer)
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Remember the learning rate that the epoch's last step uses."""
        self._remember_rate()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """From here on parameters, and what the optimizer keeps, stay in their place: a trial that goes on has them."""
        if self._graphs is not None:
            self._graphs.has_begun = True

    def _remember_rate(self) -> None:
        optimizer = self.trainer.optimizers[0]
        group = optimizer.param_groups[0]
        self._learning_rate = float(group["lr"]) / group.get("lr_scale", 1.0)
        if self.device.type == "cuda":
            round_rates(optimizer)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Collect loss and accuracy, and what is said of each image."""
        self._epoch_logits.append(self._evaluate("val", self.val_figures, batch))
        self._epoch_labels.append(batch[1])

    def on_validation_epoch_end(self) -> None:
        """Record the epoch, whose training is over by now, and keep the trained state when it is the best so far."""
        if self.trainer.sanity_checking or self.trainer.state.fn != TrainerFn.FITTING:
            self._epoch_logits, self._epoch_labels = [], []
            self.log_dict(self._pull("val", self.val_figures))
            return

        self._refuse_divergence(wait=True)
        epoch = {
            **self._pull("train", self.train_figures),
            **self._pull("val", self.val_figures),
            "lr": self._learning_rate,
            **{name: factor * self._learning_rate for name, factor in self.rates.items()},
        }
        logits, labels = torch.cat(self._epoch_logits), torch.cat(self._epoch_labels)
        self._epoch_logits, self._epoch_labels = [], []
        if self.metric not in epoch:
            epoch[self.metric] = round(measure(self.metric, logits, labels), 7)

        best = self.best
        self.history.append({"epoch": self.current_epoch, **epoch})
        self.correct.append(pack((logits.argmax(1) == labels).cpu().numpy()))
        if best is None or sign_of(self.metric) * epoch[self.metric] > sign_of(self.metric) * best[self.metric]:
            self.best_epoch = self.current_epoch
            self.best_state = self.network.trained_state()
            self.best_probabilities = logits.softmax(1).cpu()
        *_, logged = with_best(self.history, self.metric)
        self.log_dict({name: value for name, value in logged.items() if name != "epoch"})

    @property
    def best(self) -> dict[str, float] | None:
        """The figures of the best epoch; None before the first."""
        return next((epoch for epoch in self.history if epoch["epoch"] == self.best_epoch), None)

    @property
    def best_acc(self) -> float:
        """The accuracy of the best epoch; -1 before the first."""
        return -1.0 if self.best is None else self.best["val/acc"]

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Collect loss and accuracy."""
        self._evaluate("test", self.test_figures, batch)

    def on_test_epoch_end(self) -> None:
        """Log `test/loss` and `test/acc`."""
        self.log_dict(self._pull("test", self.test_figures))

    def configure_optimizers(self) -> Any:
        """The optimizer over what trains and nothing else, with a per-step schedule."""
        optimizer = self.build_optimizer(self.network)
        self._scaler = self.trainer.scaler or self._scaler
        if self.steps is None:
            total = max(1, int(self.trainer.estimated_stepping_batches))
        else:
            assert self.trainer.max_epochs is not None
            total = self.trainer.max_epochs * self.steps.of_epoch
        self._total_steps = total
        if self._by_graph and self.device.type == "cuda":
            self._graphs = GraphedSteps(self._step, optimizer, self)
        scheduler = LambdaLR(optimizer, lambda step: self.schedule(min(1.0, step / total)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that training has changed here by the end of a batch: tensors on the CPU, by name, and plain values."""
        tensors = {
            **{f"trained.{name}": value for name, value in self.network.trained_state().items()},
            **{f"best.{name}": value for name, value in self.best_state.items()},
            "probabilities": self.best_probabilities,
            "loss": self.train_figures.loss.cpu(),
            "right": self.train_figures.right.cpu(),
        }
        values = {
            "history": self.history,
            "correct": self.correct,
            "best_epoch": self.best_epoch,
        }
        return tensors, {**values, "count": self.train_figures.count, "lr": self._learning_rate}

    def load_training_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restore what `training_state` returned."""
        self.network.load_trained_state(tensors_named("trained", tensors))
        self.best_state, self.best_probabilities = tensors_named("best", tensors), tensors["probabilities"]
        self.train_figures.loss.copy_(tensors["loss"])
        self.train_figures.right.copy_(tensors["right"])
        self.train_figures.count = values["count"]
        self.history, self.best_epoch = values["history"], values["best_epoch"]
        self.correct = values.get("correct", [])  # which older versions did not save
        self._learning_rate, self._losses = values["lr"], Losses()

    def _evaluate(self, split: str, figures: Figures, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        logits = self._logits[split](x).float()
        figures.update(F.cross_entropy(logits, y), logits, y)
        return logits

    def _pull(self, split: str, figures: Figures) -> dict[str, float]:
        if self.trainer.world_size > 1:  # each device has seen a part of the training images
            figures.add_up(lambda value: self.trainer.strategy.reduce(value, reduce_op="sum"))
        values = {f"{split}/{name}": value for name, value in figures.compute().items()}
        if not math.isfinite(values[f"{split}/loss"]):
            self._diverged(f"{split}/loss", values[f"{split}/loss"])
        return values

    def _refuse_divergence(self, wait: bool = False) -> None:
        for loss in self._losses.known(wait):
            if not math.isfinite(loss):
                self._diverged("train/loss", loss)

    def _diverged(self, name: str, value: float) -> NoReturn:
        what = "lower optim.lr"
        if self._scaler.is_enabled():
            what += ", or set trainer.precision=32: fp16 has no numbers above 65,504"
        raise FloatingPointError(f"{name} became {value} in epoch {self.current_epoch}; {what}")


def tensors_named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors named `PREFIX.…`, by the rest of their names."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def cosine(progress: float, warmup: float) -> float:
    """Linear warm-up over the first `warmup` of training, then half a cosine down to 0."""
    if progress < warmup:
        return max(progress / warmup, 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / max(1e-9, 1 - warmup)))


def constant(progress: float, warmup: float) -> float:
    """Linear warm-up over the first `warmup` of training, then 1."""
    return max(progress / warmup, 1e-3) if progress < warmup else 1.0
