import pytest
import torch

from finetune.trial.figures import Figures, Losses


def test_a_loss_is_looked_at_when_the_gpu_has_got_there() -> None:
    class Event:
        done = waited = False

        def query(self) -> bool:
            return self.done

        def synchronize(self) -> None:
            self.waited = True

    first, second, third = Event(), Event(), Event()
    losses = Losses()
    losses._coming.extend((torch.tensor(float(i)), event) for i, event in enumerate((first, second, third)))  # type: ignore[misc]
    assert list(losses.known(wait=False)) == []
    first.done = third.done = True
    assert list(losses.known(wait=False)) == [0.0]
    assert list(losses.known(wait=True)) == [1.0, 2.0]
    assert (first.waited, second.waited, third.waited) == (False, True, True)


def test_the_figures_of_an_epoch_are_those_of_its_images_whatever_the_batches() -> None:
    logits, y = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    figures = Figures()
    for part in (slice(0, 4), slice(4, 7)):
        figures.update(torch.nn.functional.cross_entropy(logits[part], y[part]), logits[part], y[part])

    whole = float(torch.nn.functional.cross_entropy(logits, y))
    right = int((logits.argmax(1) == y).sum())
    assert figures.compute() == {"loss": pytest.approx(whole), "acc": round(right / 7, 7)}
    assert figures.compute() == {"loss": 0.0, "acc": 0.0}, "the next epoch starts from nothing"
