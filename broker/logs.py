"""Log lines on stderr: one a line for people, or one JSON object a line for machines (`--log-json`).

JSON keeps structure that a line of text can only display: an event's fields as separate values, and a traceback as
text.
"""

import json
import logging
from typing import Any

from skyheed.classifier.safe_names import printable, printable_lines

_OWN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}  # what every record has

CHATTY = ("matplotlib", "onnx_ir")  # libraries that tell at INFO what they do inside


class Json(logging.Formatter):
    """One JSON object: time, level, logger, message; `fields`, `error` and `stack` if present."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        entry: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        extra = {key: value for key, value in record.__dict__.items() if key not in _OWN}
        fields = extra.pop("fields", {})
        if fields := {**extra, **fields}:
            entry["fields"] = fields
        if record.exc_info and record.exc_info[0] is not None:
            kind, error, _ = record.exc_info
            entry["error"] = {
                "type": kind.__name__, "message": str(error), "traceback": self.formatException(record.exc_info),
            }  # fmt: skip
        if record.stack_info:
            entry["stack"] = self.formatStack(record.stack_info)
        return json.dumps(entry, default=str)


class Text(logging.Formatter):
    """Text from a packet cannot start a new log line, and tracebacks are marked by their indent."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.formatMessage`."""
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        """See `logging.Formatter.formatException`."""
        return printable_lines("    " + super().formatException(ei).replace("\n", "\n    "))


def set_up(as_json: bool = False, level: int = logging.INFO) -> None:
    """Send log records to stderr: time, level, logger and message, or the same as JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(Json() if as_json else Text("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in CHATTY:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def event(log: logging.Logger, what: str, /, **fields: Any) -> None:
    """Log `what key=value key=value`; in JSON the fields are also separate values. Floats are written to three
    decimals."""
    shown = (f"{key}={value:.3f}" if isinstance(value, float) else f"{key}={value}" for key, value in fields.items())
    log.info("%s", " ".join([what, *shown]), extra={"fields": fields}, stacklevel=2)
