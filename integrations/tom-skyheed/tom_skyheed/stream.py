"""skyheed's output topic as an alert stream of tom-alertstreams.

In settings.py (`pip install tom-skyheed[stream]`):

    ALERT_STREAMS = [{
        "ACTIVE": True,
        "NAME": "tom_skyheed.stream.SkyheedAlertStream",
        "OPTIONS": {
            "KAFKA": "127.0.0.1:9092", "TOPIC": "skyheed.ztf", "GROUP": "my-tom",
            "TOPIC_HANDLERS": {"skyheed.ztf": "tom_skyheed.stream.log_classification"},
        },
    }]
"""

import logging
from typing import Any

from tom_alertstreams.alertstreams.alertstream import AlertStream

logger = logging.getLogger(__name__)


class SkyheedAlertStream(AlertStream):
    """Hands every classification (`skyheed.Classification`) to the topic's handler.

    The position is kept by the consumer group and moves on only after the handler has returned: each classification is
    handled at least once, so handlers should be idempotent (`classification_id` is the same for the same answer).
    """

    required_keys = ("KAFKA", "TOPIC", "GROUP", "TOPIC_HANDLERS")
    allowed_keys = (*required_keys, "STATUS")

    def listen(self) -> None:
        """Listen forever."""
        from skyheed import Subscriber

        handler = self.alert_handler[self.topic]
        with Subscriber(self.kafka, self.topic, group=self.group, skip_bad=True) as subscriber:
            for classification in subscriber:
                handler(classification)


def log_classification(classification: Any) -> None:
    """A handler that writes one line for each object."""
    logger.info(
        "%s: %s %s", classification.object_id, classification.top_class or "not classified",
        "" if classification.top_probability is None else f"{classification.top_probability:.2f}",
    )  # fmt: skip
