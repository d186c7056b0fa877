"""The log: one JSON object a line, on standard error."""

from __future__ import annotations

import datetime
import json
import logging


class JsonLines(logging.Formatter):
    """A record as one line: time, level, message, and what the caller gave as `extra={"fields": {…}}`.

    JSON escapes line ends, so that nothing a client sends can forge a line.
    """

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        line = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_as_json_lines() -> None:
    """Have every logger of the process write so: this project's from INFO, libraries' from WARNING."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("ddpm").setLevel(logging.INFO)
    logging.captureWarnings(True)
