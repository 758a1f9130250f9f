"""The one error of data that the user must fix."""

from sppbench.errors import UserError


class DataError(UserError):
    """A data file is missing or damaged, or the images are not what the configuration says.

    The message is complete without a traceback: it names the file and what to do.

    Example:
        >>> try:
        ...     CIFAR100("data/cifar100").prepare_data()
        ... except DataError as error:
        ...     print(error)
    """
