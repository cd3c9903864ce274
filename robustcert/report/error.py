"""What a report refuses."""


class ReportError(ValueError):
    """There is nothing to report, or a file cannot be read; the message names it."""
