"""A convolution that does not multiply with padding where nothing else is within reach."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` without the taps of its kernel that only ever meet the zeros of its padding.

    On images that are smaller than the kernel reaches, as the 5×5 kernels on 1×1 and 2×2 pixels in the last stages of
    EfficientNet-B0 for images of 32×32, most taps are such ones: they add 0 to every output and get a gradient of 0.
    Leaving them out changes sums in their order at most. Parameters, names and outputs are those of ``nn.Conv2d``; for
    ``torch.fx`` and TorchScript it is a module of one's own, with a branch on the size of the image.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C_in, H, W) → (N, C_out, H_out, W_out)."""
        (top, bottom), (left, right) = self.taps(0, input.shape[-2]), self.taps(1, input.shape[-1])
        if (top, left) == (0, 0) and (bottom, right) == self.kernel_size:
            output: Tensor = super().forward(input)
            return output
        padding = [int(self.padding[0]) - top, int(self.padding[1]) - left]
        weight = self.weight[:, :, top:bottom, left:right]
        return F.conv2d(input, weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def taps(self, axis: int, size: int) -> tuple[int, int]:
        """The first tap along an axis (0 or 1) that meets a pixel of ``size`` at some place, and the one behind the
        last; all of them where that cannot be told."""
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        if isinstance(self.padding, str) or self.padding_mode != "zeros" or self.dilation[axis] != 1:
            return 0, kernel
        padding = int(self.padding[axis])
        last = (size + 2 * padding - kernel) // stride  # place; it begins at pixel last * stride - padding
        first, end = max(0, padding - last * stride), min(kernel, padding + size)
        kept, less = end - first, padding - first
        # The same padding on both sides must still give as many places.
        fits = kept > 0 and less >= 0 and (size + 2 * less - kept) // stride == last
        return (first, end) if fits else (0, kernel)
