"""The exceptions that the command line turns into one sentence: a user's mistake, and a job that lost a rank."""

from collections.abc import Mapping


class InputError(ValueError):
    """Bad input: a config value, a token cache, a checkpoint. The message is one complete sentence.

    The command line prints it after `error: ` and exits with code 2; nothing has been written by then.
    """


class ToldElsewhere(InputError):
    """Bad input that another rank of the job reports (distributed.py); this process ends without a word."""


class JobError(RuntimeError):
    """A rank of the job was lost, or computes something else. The newest checkpoint stands; exit code 3."""


def check_settings(settings: object, rules: Mapping[str, tuple[bool, str]]) -> None:
    """Raises InputError for the first attribute that does not hold to its rule.

    Args:
        settings: the object that has the attributes.
        rules: name -> whether its value is allowed, and what is.
    """
    for name, (good, allowed) in rules.items():
        if not good:
            raise InputError(f"{name} = {getattr(settings, name)!r} is not allowed; it has to be {allowed}.")
