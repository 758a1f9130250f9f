"""The one error that data may raise for the user to mend."""


class DataError(Exception):
    """The data is not as it should be: a file is missing or damaged, or the images are not what the configuration says.

    The message is complete without a traceback: it names the file and what to do.
    """
