"""The one exception that means "the user can mend this": its text is a single sentence that says how."""


class UserError(Exception):
    """Bad input, a missing file or an unusable folder; entry points print the sentence and exit with code 2."""
