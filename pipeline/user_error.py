"""The one kind of error that a user sees: a line that says what to do."""


class UserError(Exception):
    """The user, not the code, has to mend something; the text is one line that says what."""

    exit_code = 1


class UsageError(UserError):
    """An option or an environment variable is not right; the text names it."""

    exit_code = 2
