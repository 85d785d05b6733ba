"""skyheed as a data service: search classified objects, import them as targets, with their photometry.

Reads the JSON API of `skyheed serve`. In settings.py:

    DATA_SERVICES = {"skyheed": {"base_url": "http://127.0.0.1:8010", "api_key": ""}}
"""

from collections.abc import Mapping
from datetime import UTC
from typing import Any
from urllib.parse import quote

import requests
from astropy.time import Time
from django import forms
from tom_dataproducts.models import PhotometryReducedDatum
from tom_dataservices.dataservices import DataService, QueryServiceError
from tom_dataservices.forms import BaseQueryForm
from tom_targets.models import Target

TIMEOUT_S = 20
MOST = 500  # objects of one search
MICROJY = 1000  # nJy


class SkyheedForm(BaseQueryForm):
    """What can be searched for; the fields of the page's own list."""

    search = forms.CharField(
        required=False, label="Search", help_text="object id, part of one, or 'ra dec radius' (degrees, arcsec)"
    )
    top_class = forms.CharField(required=False, label="Class", help_text="for example SNIa")
    min_probability = forms.FloatField(required=False, min_value=0, max_value=1, label="Least probability")
    model = forms.CharField(required=False, label="Model", help_text="for example ztf/fusion; empty for all")
    limit = forms.IntegerField(required=False, min_value=1, max_value=MOST, initial=50, label="Objects at most")


class SkyheedDataService(DataService):
    """See the module."""

    name = "skyheed"
    verbose_name = "skyheed early classifications"
    info_url = "https://github.com/skyheed/skyheed"
    app_link = info_url
    service_notes = "Classifications of sequences of image stamps. Probabilities assume the class prior of the model."

    @classmethod
    def get_form_class(cls) -> type[SkyheedForm]:
        """See DataService."""
        return SkyheedForm

    @classmethod
    def urls(cls, **kwargs: Any) -> dict[str, str]:
        """See DataService."""
        return {"base_url": cls.get_configuration("base_url").rstrip("/"), "info_url": cls.info_url}

    def build_headers(self, *args: Any, **kwargs: Any) -> dict[str, str]:
        """The token, where the server has one."""
        token = self.get_configuration("api_key")
        return {"Authorization": f"Bearer {token}"} if token else {}

    def build_query_parameters(self, parameters: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Parameters of /api/v1/objects from the form's fields."""
        given = {
            "q": parameters.get("search"), "class": parameters.get("top_class"),
            "min_probability": parameters.get("min_probability"), "model": parameters.get("model"),
            "limit": parameters.get("limit") or 50,
        }  # fmt: skip
        self.query_parameters = {key: value for key, value in given.items() if value not in (None, "")}
        return self.query_parameters

    def build_query_parameters_from_target(self, target: Target, **kwargs: Any) -> dict[str, Any]:
        """The object of that name."""
        return {"object_id": target.name}

    def query_service(self, query_parameters: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        """The answer of the JSON API: a list, or one object where `object_id` is given.

        Raises:
            QueryServiceError: the server is unavailable, or refuses; the message is its own.
        """
        wanted = dict(query_parameters)
        path = "objects" if "object_id" not in wanted else f"objects/{quote(wanted.pop('object_id'), safe='')}"
        address = f"{self.urls()['base_url']}/api/v1/{path}"
        try:
            answer = requests.get(address, params=wanted, headers=self.build_headers(), timeout=TIMEOUT_S)
        except requests.RequestException as error:
            raise QueryServiceError(f"{self.urls()['base_url']} does not answer: {type(error).__name__}") from error
        if answer.status_code != 200:
            raise QueryServiceError(_detail(answer))
        self.query_results = answer.json()
        return self.query_results

    def query_targets(self, query_parameters: Mapping[str, Any], **kwargs: Any) -> list[dict[str, Any]]:
        """Objects as targets; those without a position are left out."""
        rows = self.query_service(query_parameters, **kwargs)["rows"]
        fields = ("top_class", "top_probability", "n_stamps", "model")
        return [
            {"name": row["object_id"], "ra": row["ra"], "dec": row["dec"], **{f: row[f] for f in fields}}
            for row in rows
            if row["ra"] is not None and row["dec"] is not None
        ]

    def create_target_from_query(self, target_result: Mapping[str, Any], **kwargs: Any) -> Target:
        """An unsaved target."""
        return Target(name=target_result["name"], type="SIDEREAL", ra=target_result["ra"], dec=target_result["dec"])

    def create_target_extras_from_query(self, query_results: Mapping[str, Any], **kwargs: Any) -> dict[str, Any]:
        """The classification at the time of the import, as extra fields."""
        wanted = {"skyheed_class": "top_class", "skyheed_probability": "top_probability", "skyheed_model": "model"}
        return {key: query_results[field] for key, field in wanted.items() if query_results.get(field) is not None}

    def query_photometry(self, query_parameters: Mapping[str, Any], **kwargs: Any) -> list[dict[str, Any]]:
        """Fluxes of an object's epochs: MJD (TAI), band, microjansky. Difference fluxes; they may be negative."""
        if "object_id" not in query_parameters:
            return []
        epochs = self.query_service(query_parameters, **kwargs)["epochs"] or {}
        columns = ("mjd", "band", "flux", "flux_error")
        rows = zip(*(epochs.get(name, []) for name in columns), strict=True)
        return [
            {"mjd": mjd, "band": band, "flux": flux / MICROJY, "error": None if error is None else error / MICROJY}
            for mjd, band, flux, error in rows
            if flux is not None
        ]

    def create_reduced_datums_from_query(
        self, target: Target, data: list[dict[str, Any]], data_type: str | None = None, **kwargs: Any
    ) -> list[PhotometryReducedDatum]:
        """Points of photometry; what is there already stays as it is."""
        if data_type != "photometry":
            return []
        made = []
        for point in data:
            datum, _ = PhotometryReducedDatum.objects.get_or_create(
                target=target, source_name=self.name, bandpass=point["band"],
                timestamp=Time(point["mjd"], format="mjd", scale="tai").utc.to_datetime(timezone=UTC),
                defaults={"brightness": point["flux"], "brightness_error": point["error"], "unit": "uJy"},
            )  # fmt: skip
            made.append(datum)
        return made


def _detail(answer: requests.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {answer.status_code}"
