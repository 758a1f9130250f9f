"""The nets of the study, as plain `torch.nn` modules.

Every leaf module is called exactly once in a forward pass and never works in place, and leaves are registered in the
order of their calls, so that hooks on the leaves see the signal after every step through the net.
"""

from sppbench.extras import need

try:
    from sppbench.models.cnn import CNN
    from sppbench.models.efficientnet import EfficientNet
    from sppbench.models.ffnn import FFNN
    from sppbench.models.initialization import initialize
    from sppbench.models.merges import MPScale, MPSum, Scale, Sum, mp_scale, mp_sum
    from sppbench.models.nf_efficientnet import NFEfficientNet
    from sppbench.models.nf_variants import NFEfficientNetVariant
    from sppbench.models.regularized_efficientnet import RegularizedEfficientNet
    from sppbench.models.stem import with_stem_stride
    from sppbench.models.un_efficientnet import UNEfficientNet
except ModuleNotFoundError:
    need("sppbench.models", "benchmark")
    raise

__all__ = [
    "CNN",
    "FFNN",
    "EfficientNet",
    "MPScale",
    "MPSum",
    "NFEfficientNet",
    "NFEfficientNetVariant",
    "RegularizedEfficientNet",
    "Scale",
    "Sum",
    "UNEfficientNet",
    "initialize",
    "mp_scale",
    "mp_sum",
    "with_stem_stride",
]
