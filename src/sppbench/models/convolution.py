"""A convolution that does not multiply with padding where nothing else is within reach."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` without the taps of its kernel that only ever meet the zeros of its padding.

    On images that are smaller than the kernel reaches, as the 5×5 kernels on 1×1 and 2×2 pixels in the last stages of
    EfficientNet-B0 for images of 32×32, most taps are such ones: they add nothing to the output and get no gradient.
    Leaving them out is the same arithmetic, without the products with 0. Parameters, names and outputs are those of
    ``nn.Conv2d``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(N, C_in, H, W) → (N, C_out, H_out, W_out)."""
        axes = [self._taps(axis, input.shape[axis - 2]) for axis in (0, 1)]
        if all(taps == slice(0, size) for taps, size in zip(axes, self.kernel_size, strict=True)):
            output: Tensor = super().forward(input)
            return output
        padding = [int(self.padding[axis]) - taps.start for axis, taps in enumerate(axes)]
        weight = self.weight[:, :, axes[0], axes[1]]
        return F.conv2d(input, weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def _taps(self, axis: int, size: int) -> slice:
        """The taps along an axis that meet a pixel of the image at some place; all where that cannot be told."""
        kernel, stride = self.kernel_size[axis], self.stride[axis]
        everything = slice(0, kernel)
        if isinstance(self.padding, str) or self.padding_mode != "zeros" or self.dilation[axis] != 1:
            return everything
        padding = int(self.padding[axis])
        last = (size + 2 * padding - kernel) // stride  # place; it begins at pixel last * stride - padding
        first_tap, last_tap = max(0, padding - last * stride), min(kernel - 1, padding + size - 1)
        kept, less = last_tap - first_tap + 1, padding - first_tap
        # The same padding on both sides must still give as many places.
        fits = kept > 0 and less >= 0 and (size + 2 * less - kept) // stride == last
        return slice(first_tap, last_tap + 1) if fits else everything
