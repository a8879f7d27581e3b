"""The exceptions that the command line turns into one sentence: a user's mistake, and a job that lost a rank."""


class InputError(ValueError):
    """Bad input: a config value, a token cache, a checkpoint. The message is one complete sentence.

    The command line prints it after `error: ` and exits with code 2; nothing has been written by then.
    """


class ToldElsewhere(InputError):
    """Bad input that another rank of the job reports (distributed.py); this process ends without a word."""


class JobError(RuntimeError):
    """A rank of the job was lost, or computes something else. The newest checkpoint stands; exit code 3."""
