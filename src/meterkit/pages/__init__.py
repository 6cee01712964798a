"""Web pages, to be mounted in an app: ``Mount("/usage", app=usage_page(kit, customer=…, origins=[…]))``."""

from meterkit.pages.operator import operator_pages
from meterkit.pages.rendering import Brand
from meterkit.pages.usage_page import usage_page

__all__ = ["Brand", "operator_pages", "usage_page"]
