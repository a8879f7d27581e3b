"""The exceptions that the command line turns into one sentence: bad input, and a job that lost a rank."""

from collections.abc import Mapping


class InputError(ValueError):
    """Bad input: a config value, a token cache, a checkpoint. The message is one complete sentence.

    The command line prints it after `error: ` and exits with code 2; nothing has been written by then.
    """


class ReportedElsewhere(InputError):
    """Bad input that another rank of the job reports; this process exits without a message."""


class JobError(RuntimeError):
    """A rank of the job was lost, or its results differ. The newest checkpoint is valid; the exit code is 3."""


def check_settings(settings: object, rules: Mapping[str, tuple[bool, str]]) -> None:
    """Raises InputError for the first attribute that breaks its rule.

    Args:
        settings: the object that has the attributes.
        rules: name -> whether its value is allowed, and a description of the allowed values.
    """
    for name, (good, allowed) in rules.items():
        if not good:
            raise InputError(f"{name} is {getattr(settings, name)!r}; it must be {allowed}.")
