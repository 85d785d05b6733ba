"""An AMPEL T2 unit: the latest skyheed classification of an object, looked up in the JSON API of `skyheed serve`."""

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import requests
from ampel.abstract.AbsStateT2Unit import AbsStateT2Unit
from ampel.content.DataPoint import DataPoint
from ampel.content.T1Document import T1Document
from ampel.enum.DocumentCode import DocumentCode
from ampel.struct.UnitResult import UnitResult
from ampel.types import UBson


class T2Skyheed(AbsStateT2Unit):
    """Probabilities by taxonomy id, as AMPEL's own classifiers give them, and what made them.

    The unit asks for the object by name. ZTF stocks are numbers in AMPEL: the name is taken from the datapoints
    (`name_keys`, the first that any of them has), else from the stock itself.

    Attributes:
        api_url: address of `skyheed serve`, such as http://127.0.0.1:8010.
        model: a model of the survey, such as "ztf/fusion"; empty for the first that has an answer.
        token: for a server that was started with --token-file.
        timeout: seconds.
        name_keys: keys of a datapoint's body that may hold the object's name.
    """

    api_url: str
    model: str = ""
    token: str = ""
    timeout: float = 10.0
    name_keys: list[str] = ["diaObjectId", "objectId", "name"]  # noqa: RUF012 (AMPEL reads units' annotated attributes)

    def process(self, compound: T1Document, datapoints: Iterable[DataPoint]) -> UBson | UnitResult:
        """See AbsStateT2Unit; asks to be run again where the server is unavailable, or busy."""
        name = self._name(compound, datapoints)
        try:
            answer = requests.get(
                f"{self.api_url.rstrip('/')}/api/v1/objects/{quote(name, safe='')}",
                headers={"Authorization": f"Bearer {self.token}"} if self.token else {},
                timeout=self.timeout,
            )
        except requests.RequestException as error:
            return self._again(f"{self.api_url} does not answer: {type(error).__name__}")
        if answer.status_code == 404:
            return {"object_id": name, "status": "UNKNOWN"}
        if answer.status_code == 429 or answer.status_code >= 500:
            return self._again(f"{self.api_url} answers {answer.status_code}")
        if answer.status_code != 200:
            return UnitResult(body={"error": self._refusal(answer)}, code=DocumentCode.ERROR)
        return self._result(name, answer.json())

    def _name(self, compound: T1Document, datapoints: Iterable[DataPoint]) -> str:
        for datapoint in datapoints:
            for key in self.name_keys:
                if (value := datapoint["body"].get(key)) not in (None, ""):
                    return str(value)
        stock = compound["stock"]
        return str(stock if isinstance(stock, int | str) else stock[0])

    def _again(self, why: str) -> UnitResult:
        self.logger.warn(why)
        return UnitResult(body={"error": why}, code=DocumentCode.RERUN_REQUESTED)

    @staticmethod
    def _refusal(answer: requests.Response) -> str:
        try:
            return str(answer.json()["detail"])
        except (ValueError, KeyError, TypeError):
            return f"HTTP {answer.status_code}"

    def _result(self, name: str, said: Mapping[str, Any]) -> dict[str, Any]:
        latest = said["latest"]
        models = [self.model] if self.model else list(latest)
        record = next((latest[m] for m in models if latest.get(m)), None)
        if record is None:
            return {"object_id": name, "status": "NOT_YET"}
        classes = record["probabilities"]
        return {
            "object_id": record["object_id"],
            "status": record["status"],
            "reason": record["reason"],
            "revision": record["revision"],
            "classification_id": record["classification_id"],
            "n_stamps": record["n_stamps"],
            "probabilities": {str(c["taxonomy_id"]): c["probability"] for c in classes},
            "classes": {str(c["taxonomy_id"]): c["name"] for c in classes},
            "model": record["provenance"]["model_name"],
            "model_version": record["provenance"]["model_version"],
            "taxonomy": record["provenance"]["taxonomy"],
        }
