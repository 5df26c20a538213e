"""The one error that is meant for the user's eyes."""


class UserError(ValueError):
    """A mistake that its reader can mend: one sentence with what was given, what is allowed and what to do."""
