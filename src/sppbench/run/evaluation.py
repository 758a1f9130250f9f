"""How well a trained net fits its own training images: what separates optimization from generalization."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@torch.no_grad()
def evaluate(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float | int | None]:
    """Loss and accuracy of a net in evaluation mode; it is left in the mode that it was in.

    The loss that is logged while training is no measure of the fit: it is taken with augmentation and dropout, and
    each batch's before the step that the batch causes.

    Args:
        net: Maps images (N, C, H, W), of the type of its parameters, to logits (N, classes).
        batches: Images and labels (N,), int64, on the net's device.

    Returns:
        ``loss`` (mean cross entropy over the images, in nats; None if not finite), ``accuracy`` (percent) and
        ``images`` (their number).

    Raises:
        ValueError: There are no images.

    Example:
        >>> evaluate(net, data.training_evaluation_dataloader())
        {'loss': 2.23, 'accuracy': 41.2, 'images': 10000}
    """
    training = net.training
    net.eval()
    dtype = next((p.dtype for p in net.parameters() if p.is_floating_point()), torch.float32)
    loss, correct, images = 0.0, 0, 0
    try:
        for x, labels in batches:
            logits = net(x.to(dtype)).float()
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            correct += int((logits.argmax(1) == labels).sum())
            images += len(labels)
    finally:
        net.train(training)
    if not images:
        raise ValueError("there are no images to evaluate the net on")
    mean = torch.tensor(loss / images)
    return {
        "loss": float(mean) if mean.isfinite() else None,
        "accuracy": 100 * correct / images,
        "images": images,
    }
