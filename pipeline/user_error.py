"""The one kind of error that a user sees: a line that says what to do."""


class UserError(Exception):
    """A problem for the user to fix, not a bug; the text is one line that says what to fix."""

    exit_code = 1


class UsageError(UserError):
    """An invalid option or environment variable; the text names it."""

    exit_code = 2
