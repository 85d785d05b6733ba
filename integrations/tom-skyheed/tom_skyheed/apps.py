"""Registers the data service with the TOM Toolkit."""

from django.apps import AppConfig


class TomSkyheedConfig(AppConfig):
    """Add "tom_skyheed" to INSTALLED_APPS."""

    name = "tom_skyheed"
    verbose_name = "skyheed"

    def data_services(self) -> list[dict[str, str]]:
        """See tom_dataservices.dataservices.get_data_service_classes."""
        return [{"class": "tom_skyheed.service.SkyheedDataService"}]
