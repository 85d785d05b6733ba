"""The data service in a real TOM Toolkit, against the local server."""

from datetime import UTC, datetime, timedelta

import pytest
from tom_dataproducts.models import PhotometryReducedDatum
from tom_dataservices.dataservices import QueryServiceError, get_data_service_class
from tom_skyheed.service import SkyheedDataService, SkyheedForm
from tom_targets.models import Target


def test_the_toolkit_finds_it() -> None:
    assert get_data_service_class("skyheed") is SkyheedDataService


def test_what_the_form_asks_for_is_what_the_server_is_asked(server) -> None:
    form = SkyheedForm({"data_service": "skyheed", "top_class": "SNIa", "min_probability": "0.8", "limit": "10"})
    assert form.is_valid(), form.errors
    service = SkyheedDataService()
    found = service.query_targets(service.build_query_parameters(form.cleaned_data))
    assert [target["name"] for target in found] == ["ZTF25aaa"]
    path, asked, token = server.asked[0]
    assert (path, asked) == ("/api/v1/objects", {"class": "SNIa", "min_probability": "0.8", "limit": "10"})
    assert token == "Bearer secret"


@pytest.mark.django_db
def test_an_object_becomes_a_target_with_its_photometry_once(server) -> None:
    service = SkyheedDataService()
    target = service.to_target(service.query_targets(service.build_query_parameters({}))[0])
    assert (target.name, target.ra, target.dec) == ("ZTF25aaa", 150.1, 2.2)
    for _ in range(2):
        service.to_reduced_datums(target, service.query_reduced_data(target))
    first, second = PhotometryReducedDatum.objects.filter(target=target).order_by("timestamp")
    assert (first.brightness, first.brightness_error, first.unit, first.bandpass) == (250.0, 3.0, "uJy", "g")
    assert (second.brightness, second.brightness_error) == (-1.0, None)
    begin = datetime(2023, 2, 25, tzinfo=UTC) - timedelta(seconds=37)  # MJD 60000 (TAI)
    assert abs(first.timestamp - begin) < timedelta(milliseconds=1)
    assert Target.objects.count() == 1


def test_refusals_and_absence_are_one_sentence_each_without_the_token(server, settings) -> None:
    with pytest.raises(QueryServiceError, match="no such object"):
        SkyheedDataService().query_service({"object_id": "a/b"})
    settings.DATA_SERVICES["skyheed"]["base_url"] = "http://127.0.0.1:9"
    with pytest.raises(QueryServiceError, match="does not answer") as away:
        SkyheedDataService().query_service({})
    assert "secret" not in str(away.value)
