"""The one exception that a user's mistake raises: a sentence that names what is wrong and what is allowed."""


class InputError(ValueError):
    """Bad input: a config value, a token cache, a checkpoint. The message is one complete sentence.

    The command line prints it after `error: ` and exits with code 2; nothing has been written by then.
    """
