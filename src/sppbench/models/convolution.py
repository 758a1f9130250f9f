"""A convolution that does no more than small images need."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` for images that may be smaller than its kernel reaches, down to a single pixel.

    As in the last stages of EfficientNet-B0, which has images of 1×1 and 2×2 pixels there where it is given 32×32. Most
    taps of a 5×5 kernel then only ever meet the zeros of the padding: they add 0 to every output and get a gradient of
    0. They are left out. What remains of a convolution of a single pixel is a product of its channels with a matrix,
    or with one number for each channel. On a CPU it is computed as such, which takes half as long. A depthwise
    convolution of images with fewer rows than its kernel gets the rows of zeros as part of its images: oneDNN then has
    its depthwise kernel for the gradient of the weights, which is 3 to 17 times as fast.

    At most the order of sums changes. Parameters, names and outputs are those of ``nn.Conv2d``; ``torch.fx`` and
    TorchScript see a custom module with a branch on the size of the image.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C_in, H, W) → (N, C_out, H_out, W_out)."""
        return self.convolve(input, self.weight)

    def convolve(self, input: Tensor, all_taps: Tensor) -> Tensor:
        """As `forward`, with a weight (C_out, C_in / groups, k, k) that takes the place of the layer's own."""
        (top, bottom), (left, right) = self.taps(0, input.shape[-2]), self.taps(1, input.shape[-1])
        whole = (top, left) == (0, 0) and (bottom, right) == self.kernel_size
        if whole:
            weight, padding = all_taps, self.padding
        else:
            weight = all_taps[:, :, top:bottom, left:right]
            padding = int(self.padding[0]) - top, int(self.padding[1]) - left
        if input.is_cpu and input.ndim == 4 and input.shape[-2:] == weight.shape[-2:] == (1, 1) and padding == (0, 0):
            pixels = input.permute(0, 2, 3, 1)  # channels last, for the sake of the layout of what comes out
            if self.groups == 1:
                return F.linear(pixels, weight.flatten(1), self.bias).permute(0, 3, 1, 2)
            if self.groups == self.in_channels == self.out_channels:
                products = pixels * weight.flatten()
                return (products if self.bias is None else products + self.bias).permute(0, 3, 1, 2)
        if input.is_cpu and input.ndim == 4 and self._is_low(input, weight):
            rows = int(padding[0])
            input, padding, whole = F.pad(input, (0, 0, rows, rows)), (0, int(padding[1])), False
        if whole:  # also where padding is more than a number of zeros
            convolved: Tensor = self._conv_forward(input, weight, self.bias)
            return convolved
        return F.conv2d(input, weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def _is_low(self, input: Tensor, weight: Tensor) -> bool:
        """Whether it is a depthwise convolution of images with fewer rows than its kernel, which gets rows of zeros."""
        depthwise = self.groups == self.in_channels == self.out_channels
        padded = self.padding_mode == "zeros" and not isinstance(self.padding, str)
        return depthwise and padded and input.shape[-2] < weight.shape[-2]

    def taps(self, axis: int, size: int) -> tuple[int, int]:
        """Return the range of taps along an axis (0 or 1) that meet a pixel of an image of ``size`` at some position.

        The range excludes its end, as in a slice. All taps are returned where the padding or dilation is unusual.
        """
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        if isinstance(self.padding, str) or self.padding_mode != "zeros" or self.dilation[axis] != 1:
            return 0, kernel
        padding = int(self.padding[axis])
        last = (size + 2 * padding - kernel) // stride  # position; it begins at pixel last * stride - padding
        first, end = max(0, padding - last * stride), min(kernel, padding + size)
        kept, less = end - first, padding - first
        # The same padding on both sides must still give as many positions.
        fits = kept > 0 and less >= 0 and (size + 2 * less - kept) // stride == last
        return (first, end) if fits else (0, kernel)
