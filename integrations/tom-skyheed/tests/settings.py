"""A TOM of the tests: the Toolkit's own settings, this app, a data base in memory."""

from tom_base.settings import *  # noqa: F403
from tom_base.settings import INSTALLED_APPS as TOOLKIT

INSTALLED_APPS = [*TOOLKIT, "tom_skyheed"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
DATA_SERVICES = {"skyheed": {"base_url": "http://127.0.0.1:9", "api_key": ""}}
