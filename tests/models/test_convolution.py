"""The convolution for small images: torch's own is the reference."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import nn

from sppbench.models import EfficientNet
from sppbench.models.convolution import Conv2d

# Kernel, padding, stride, dilation, groups; height and width of the images.
KERNELS = [(k, p, s, d, g) for k, p, s, d, g in product((1, 2, 3, 5), (0, 1, 2, 3), (1, 2, 3), (1, 2), (1, 4))]
SIZES = [(1, 1), (2, 2), (1, 2), (2, 5), (3, 1), (4, 4), (8, 3)]


@pytest.mark.parametrize("size", SIZES)
def test_outputs_and_gradients_are_torchs(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    left_out = 0
    for kernel, padding, stride, dilation, groups in KERNELS:
        theirs = nn.Conv2d(4, 4, kernel, stride, padding, dilation, groups).double()
        ours = Conv2d(4, 4, kernel, stride, padding, dilation, groups).double()
        ours.load_state_dict(theirs.state_dict())
        image = torch.randn(2, 4, *size, generator=generator).double()
        images = [image.clone().requires_grad_() for _ in range(2)]
        if min(size) + 2 * padding < dilation * (kernel - 1) + 1:
            continue  # torch refuses a kernel that is larger than the image
        outputs = [theirs(images[0]), ours(images[1])]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=1e-13)
        weights = torch.randn(outputs[0].shape, generator=generator).double()
        for output in outputs:
            output.backward(weights)
        torch.testing.assert_close(images[1].grad, images[0].grad, rtol=0, atol=1e-12)
        torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=0, atol=1e-12)
        left_out += ours.taps(0, size[0]) != (0, kernel)
    assert (left_out > 0) == (size[0] < 8)


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "taps"),
    [
        (5, 1, 1, (2, 3)),  # one pixel under the centre of the kernel
        (5, 1, 2, (1, 4)),
        (5, 1, 4, (0, 5)),
        (5, 2, 2, (2, 4)),  # one place, its centre on the first of two pixels
        (3, 1, 1, (1, 2)),
        (3, 2, 4, (0, 3)),
    ],
)
def test_only_taps_within_reach_of_the_image_are_kept(
    kernel: int, stride: int, size: int, taps: tuple[int, int]
) -> None:
    assert Conv2d(1, 1, kernel, stride, padding=kernel // 2).taps(0, size) == taps


@pytest.mark.parametrize("arguments", [{"padding": "same"}, {"padding": 2, "padding_mode": "circular"}])
def test_what_is_no_padding_with_a_number_of_zeros_is_left_to_torch(arguments: dict[str, object]) -> None:
    ours, images = Conv2d(2, 2, 5, **arguments), torch.randn(1, 2, 2, 2)  # type: ignore[arg-type]
    assert ours.taps(0, 2) == (0, 5)
    torch.testing.assert_close(ours(images), nn.Conv2d.forward(ours, images))


def test_a_tap_out_of_reach_gets_a_gradient_of_zero_and_weights_that_are_not_finite_do_not_show() -> None:
    ours = Conv2d(1, 1, 5, padding=2)
    with torch.no_grad():
        ours.weight[0, 0, 0, 0] = torch.inf
    ours(torch.ones(1, 1, 1, 1)).sum().backward()
    assert ours.weight.grad is not None
    expected = torch.zeros(1, 1, 5, 5)
    expected[0, 0, 2, 2] = 1
    assert torch.equal(ours.weight.grad, expected)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("kernel", [1, 3])
def test_a_single_pixel_is_multiplied_without_a_convolution(groups: int, kernel: int) -> None:
    ours = Conv2d(4, 4, kernel, padding=kernel // 2, groups=groups).to(memory_format=torch.channels_last)
    images = torch.randn(3, 1, 1, 4).permute(0, 3, 1, 2)
    with torch.profiler.profile() as profiler:
        output = ours(images)
    assert not any("conv" in event.name for event in profiler.events())
    # What follows takes its layout from the strides, also those of axes of one pixel.
    assert output.stride() == images.stride() == (4, 1, 4, 4)


@pytest.mark.parametrize(("kernel", "stride", "size"), [(3, 1, (2, 2)), (5, 1, (4, 4)), (5, 2, (4, 3))])
def test_a_depthwise_kernel_gets_images_of_no_fewer_rows(kernel: int, stride: int, size: tuple[int, int]) -> None:
    """With fewer rows, oneDNN computes the gradient of the weights many times as slowly."""
    ours = Conv2d(4, 4, kernel, stride, kernel // 2, groups=4)
    images = torch.randn(16, 4, *size).to(memory_format=torch.channels_last).requires_grad_()
    with torch.profiler.profile(record_shapes=True) as profiler:
        output = ours(images)
        output.square().sum().backward()
    shapes = [event.input_shapes for event in profiler.events() if event.name == "aten::convolution_backward"]
    assert [images[2] >= weight[2] for _, images, weight, *_ in shapes] == [True]
    assert output.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(output, nn.Conv2d.forward(ours, images))


def test_a_pixel_that_is_not_finite_shows_where_torch_shows_it() -> None:
    for kernel in (1, 3, 5):
        ours = Conv2d(2, 2, kernel, padding=kernel // 2, groups=2)
        for size in ((1, 1), (2, 2), (1, 2), (1, 4), (4, 1)):
            images = torch.ones(1, 2, *size)
            images[0, 0, 0, 0] = torch.nan
            assert torch.equal(ours(images).isnan(), nn.Conv2d.forward(ours, images).isnan())


def test_an_image_without_a_batch_is_taken() -> None:
    ours, image = Conv2d(2, 3, 1), torch.randn(2, 1, 1)
    torch.testing.assert_close(ours(image), nn.Conv2d.forward(ours, image))


def test_efficientnet_has_no_other_convolutions() -> None:
    convolutions = [module for module in EfficientNet().modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 81
    assert {type(module) for module in convolutions} == {Conv2d}
