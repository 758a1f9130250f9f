"""The root of all errors whose message is meant for the user as it is."""


class UserError(Exception):
    """Something that the user must fix; the message says what, in one line."""
