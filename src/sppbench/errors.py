"""Errors whose message is meant for the user as it is."""


class UserError(Exception):
    """Something that the user must fix; the message says what, in one line."""


class DataError(UserError):
    """A data file is missing or damaged, or the images are not what the configuration says.

    The message is complete without a traceback: it names the file and what to do.

    Example:
        >>> from sppbench.data import Digits
        >>> try:
        ...     Digits(val_size=1500).prepare_data()
        ... except DataError as error:
        ...     print(error)
        data.val_size=1500 leaves none of the 1500 training images
    """
