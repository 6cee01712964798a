"""Subject, text and HTML of an e-mail, from templates that a folder can override, by locale."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from meterkit.catalog.meters import MICRO_USD
from meterkit.catalog.value_parsers import is_money, micro_money, money, size_text
from meterkit.decisions.subscription import is_for_debt
from meterkit.errors import MeterkitError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from meterkit.catalog import Catalog
    from meterkit.notify.courier import Message

_logger = logging.getLogger("meterkit.notify")

_LOCALE: Final = re.compile(r"([A-Za-z]{2,3})(?:[-_][A-Za-z0-9]{2,8})*")
_SUBJECT: Final = "Subject:"
_PAGE: Final = "message.html"
_TENFOLD: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedMessage:
    """Subject, text and HTML of an e-mail."""

    subject: str
    text: str
    html: str


class Renderer:
    """Renders e-mails with jinja2, which the first e-mail imports.

    A message of ``usage.threshold`` uses ``usage.threshold.txt``, whose first line is ``Subject: …``, and
    ``usage.threshold.html``, otherwise ``message.html``. For the locale ``pt-BR`` it searches ``pt-BR/``,
    ``pt/``, the folder itself, then the built-in templates.

    Args:
        catalog: returns the active catalog.
        folder: templates that replace the built-in ones; None: there are none.
    """

    def __init__(self, catalog: Callable[[], Catalog], folder: Path | None) -> None:
        self._catalog = catalog
        self._folder = folder
        self._loaded: tuple[Any, Any] | None = None

    def render(
        self, message: Message, *, locale: str | None, name: str | None, currency: str = ""
    ) -> RenderedMessage:
        """Render the e-mail of a message; if a template of the folder fails, use the built-in one.

        Args:
            message: the message.
            locale: of the contact.
            name: of the contact.
            currency: that Stripe bills the customer in; empty: none yet.

        Raises:
            MeterkitError: jinja2 is not installed (the extra ``notify``).
        """
        built_in, overriding = self._environments()
        context = self._make_context(message, name, currency)
        if overriding is not None:
            try:
                return _render_templates(overriding, message.event, _locale_folders(locale), context)
            except Exception as error:  # noqa: BLE001 - a template may raise anything
                _logger.error(  # noqa: TRY400 - the template is at fault, not the code
                    "a template of %s for %s fails; the built-in one is used: %r",
                    self._folder,
                    message.event,
                    error,
                )
        return _render_templates(built_in, message.event, ("",), context)

    def _environments(self) -> tuple[Any, Any]:
        if self._loaded is None:
            try:
                jinja: Any = import_module("jinja2")
            except ImportError as error:
                raise MeterkitError(
                    "jinja2 is required for e-mails. Install with: pip install 'meterkit[notify]'"
                ) from error
            if self._folder is not None and not self._folder.is_dir():
                _logger.error(
                    "there is no folder %s of templates, so the built-in ones are used; correct"
                    " METERKIT_NOTIFY_TEMPLATES",
                    self._folder,
                )
            built_in = jinja.PackageLoader("meterkit.notify")
            loaders = [] if self._folder is None else [jinja.FileSystemLoader(self._folder), built_in]
            overriding = (
                None if self._folder is None else _make_environment(jinja, jinja.ChoiceLoader(loaders))
            )
            self._loaded = _make_environment(jinja, built_in), overriding
        return self._loaded

    def _make_context(self, message: Message, name: str | None, currency: str) -> Mapping[str, Any]:
        catalog = self._catalog().in_currency(currency)
        return {
            **message.data,
            "event": message.event,
            "name": name,
            "plans": {plan.key: plan.name for plan in catalog.all_plans},
            "addon_names": {addon.key: addon.name for addon in catalog.all_addons},
            "titles": {key: meter.title for key, meter in catalog.meters.items()},
            "units": {key: meter.unit for key, meter in catalog.meters.items()},
            "money_credits": {key: MICRO_USD for key, credit in catalog.credits.items() if credit.is_money},
            "portal_url": catalog.billing.portal_url,
            "currency": message.data.get("currency") or catalog.currency,
        }


def _is_html(template: str | None) -> bool:
    return template is not None and template.endswith(".html")


def _make_environment(jinja: Any, loader: Any) -> Any:
    environment = jinja.Environment(
        loader=loader,
        autoescape=_is_html,
        undefined=jinja.StrictUndefined,  # A misspelled name must fail, not leave a gap.
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "money": money,
        "day": _day,
        "last_day": _last_day,
        "quantity": _quantity,
        "size": size_text,
        "exact_money": micro_money,
        "is_money": is_money,
    }
    environment.tests["for_debt"] = is_for_debt
    environment.globals["times"] = _factor_text
    return environment


def _render_templates(
    environment: Any, event: str, folders: tuple[str, ...], context: Mapping[str, Any]
) -> RenderedMessage:
    written = environment.select_template([f"{place}{event}.txt" for place in folders]).render(context)
    head, _, text = written.strip().partition("\n")
    if not head.startswith(_SUBJECT):
        raise ValueError(f"{event}.txt: found {head!r:.80}; its first line must begin with {_SUBJECT!r}")
    # Names may contain a line break; a header must not.
    subject, text = " ".join(head.removeprefix(_SUBJECT).split()), text.strip()
    pages = [f"{place}{file}" for place in folders for file in (f"{event}.html", _PAGE)]
    paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]
    page = environment.select_template(pages)
    html = page.render({**context, "subject": subject, "paragraphs": paragraphs})
    return RenderedMessage(subject=subject, text=f"{text}\n", html=html)


def _locale_folders(locale: str | None) -> tuple[str, ...]:
    """List the folders of a locale, the most specific first."""
    found = _LOCALE.fullmatch(locale or "")
    if found is None:
        return ("",)
    return tuple(dict.fromkeys((f"{found.group()}/", f"{found.group(1)}/", "")))


def _day(iso: str) -> str:
    """Format ``2026-12-01T00:00:00Z`` as ``1 Dec 2026``."""
    at = datetime.fromisoformat(iso)
    return f"{at.day} {at:%b %Y}"


def _last_day(iso: str) -> str:
    """Format the last day of a period that ends at an instant."""
    return _day((datetime.fromisoformat(iso) - timedelta(milliseconds=1)).isoformat())


def _quantity(number: int) -> str:
    return f"{number:,}"


def _factor_text(units: int, other: int) -> str:
    """Format a factor: ``3``, ``1.4``."""
    return f"{units / other:,.0f}" if units >= _TENFOLD * other else f"{units / other:.2g}"
