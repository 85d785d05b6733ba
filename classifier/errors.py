"""Errors of the classifier; the broker's tree (broker/errors.py) shows them alongside its own."""


class ClassifierError(Exception):
    """Root of the classifier's errors; its message is one sentence that says what to do."""


class ModelError(ClassifierError):
    """A checkpoint, device or precision that cannot be used."""


class ArchiveError(ClassifierError):
    """A data set of stamp sequences that is missing, half-written or damaged."""
