"""Errors of the classifier; listed in broker/errors.py, too."""


class ClassifierError(Exception):
    """Root of the classifier's errors; its message is one sentence that says what to do."""


class ModelError(ClassifierError):
    """A checkpoint, device or precision that cannot be used."""


class ArchiveError(ClassifierError):
    """An archive of histories that is missing, incomplete or damaged."""
