"""Every error that recon4d_ros raises on purpose.

A message says what was given, what was expected and what to do about it. The command line prints
it as one line and exits with code 2; the node counts it in its diagnostics and drops that frame.
"""


class Recon4DError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(Recon4DError):
    """A parameter is unknown, of the wrong type or out of range."""


class FrameError(Recon4DError):
    """One input image or its camera description cannot be used."""


class SourceError(Recon4DError):
    """A sequence folder, bag or video cannot be read."""


class OutputError(Recon4DError):
    """A result cannot be written."""


class GeometryError(Recon4DError):
    """Geometric input of the wrong shape, not finite or degenerate."""


class PredictorError(Recon4DError):
    """A predictor or tracker cannot do its work on this input."""


class ModelError(Recon4DError):
    """The weights of a network cannot be used, or do not fit what is asked of them."""


class AlignmentError(Recon4DError):
    """A window cannot be joined to the map."""


class TrainingError(Recon4DError):
    """A training run cannot begin, go on where it was left, or has diverged."""


class EvaluationError(Recon4DError):
    """Results and ground truth cannot be compared."""


class MissingPrerequisiteError(Recon4DError):
    """Something that the machine should offer is missing."""


class ProcessError(Recon4DError):
    """A process that was started to do a part of the work failed."""
