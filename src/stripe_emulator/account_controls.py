"""Controls of the emulated account without an API call: what it has, sells and charges, faults, the clock."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, cast
from urllib.parse import urlencode

from stripe_emulator.behaviour import Behaviour
from stripe_emulator.call import Call, Params
from stripe_emulator.clock import Clock
from stripe_emulator.customers import Customer
from stripe_emulator.faults import Fault, PendingFault
from stripe_emulator.invoice_lifecycle import attempt_payment
from stripe_emulator.invoices import Dispute
from stripe_emulator.meters import Meter
from stripe_emulator.payment_method_calls import cancel_setup, confirm_setup
from stripe_emulator.payment_methods import find_setup_intent
from stripe_emulator.price_calls import make_price, make_product, read_price
from stripe_emulator.protocol import new_id
from stripe_emulator.scheduled_transitions import run_due_transitions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from stripe_emulator.account import Account
    from stripe_emulator.meter_events import MeterEvent
    from stripe_emulator.protocol import Exchange


_P = ParamSpec("_P")


def _with_parameters_of(
    made: Callable[_P, object],
) -> Callable[[Callable[..., None]], Callable[Concatenate[AccountControls, _P], None]]:
    """Give a method of the emulator the signature of a constructor."""
    del made
    return lambda method: method


CLOCK_MAX: Final = datetime(3000, 1, 1, tzinfo=UTC).timestamp()


class AccountControls(Behaviour):
    """The account as a test reads and changes it, without API calls; a part of ``StripeEmulator``."""

    _account: Account

    def add_customer(
        self, customer_id: str | None = None, *, name: str | None = None, currency: str | None = None
    ) -> str:
        """Add a customer, under an id of the caller's choice if given. Returns the id.

        Args:
            customer_id: any text; None: a fresh id.
            name: as invoices show it.
            currency: that it was charged in before; None: nothing was charged yet.

        Raises:
            ValueError: if the id is taken.
        """
        customer = Customer(id=customer_id or new_id("cus"), created=int(self.clock()), currency=currency)
        customer.texts["name"] = name
        with self._account.lock:
            self._account.customers.add(customer)
        return customer.id

    def add_meter(self, event_name: str, *, formula: str = "sum", time_window: str | None = None) -> str:
        """Add an active meter. Returns its id.

        Raises:
            ValueError: if an active meter has this event name.
        """
        now = int(self.clock())
        meter = Meter(
            id=new_id("mtr_test", length=31),
            event_name=event_name,
            display_name=event_name,
            formula=formula,
            time_window=time_window,
            created=now,
            updated=now,
        )
        with self._account.lock:
            if self._account.meters.active(event_name) is not None:
                raise ValueError(f"there is already an active meter with the event name {event_name}")
            self._account.meters.add(meter)
        return meter.id

    @property
    def events(self) -> tuple[MeterEvent, ...]:
        """All events that were accepted, in the order of their arrival."""
        with self._account.lock:
            return tuple(self._account.events.accepted)

    @property
    def requests(self) -> tuple[Exchange, ...]:
        """The last 100,000 API requests with their results, in the order of completion."""
        with self._account.lock:
            return tuple(self._account.exchanges)

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults that can still happen."""
        with self._account.lock:
            return tuple(pending.fault for pending in self._account.faults)

    def accepted(self, customer: str, event_name: str) -> Decimal:
        """Return the sum of a customer's counted events, as invoices and summaries will show it."""
        return sum(
            (
                event.value
                for event in self.events
                if event.counted and event.customer == customer and event.event_name == event_name
            ),
            Decimal(0),
        )

    @_with_parameters_of(Fault)
    def fail_next(self, *action: Any, **fields: Any) -> None:
        """Let the next matching requests fail; :class:`Fault` describes the arguments.

        ``fail_next("drop", when="after")``: the next event is counted and the answer is lost.
        ``fail_next("error", status=429, times=3)``: the next three calls are refused.

        Raises:
            ValueError: if there is no such fault.
        """
        self._add_fault(Fault(*action, **fields))

    def _add_fault(self, fault: Fault) -> None:
        with self._account.lock:
            self._account.faults.append(PendingFault(fault))

    def clear_faults(self) -> None:
        """Forget the faults to come."""
        with self._account.lock:
            self._account.faults.clear()

    def end_sessions(self) -> None:
        """Expire the sessions of meter event streams before their 15 minutes are over."""
        with self._account.lock:
            self._account.meter_event_sessions.end()

    def reset(self) -> None:
        """Forget everything: customers, meters, events, keys, faults."""
        self._account.reset()

    def add_product(self, name: str, *, product_id: str | None = None, **params: Any) -> str:
        """Add a product, under an id of the caller's choice if given. Returns the id.

        Args:
            name: what customers see.
            product_id: any text; None: a fresh id.
            params: other parameters of ``POST /v1/products``.

        Raises:
            ApiError: Stripe would refuse it.
        """
        given = {"name": name, "id": product_id, **params}
        with self._account.lock:
            return make_product(self._account, _encode_params(given), call=self._call()).id

    def add_price(
        self,
        unit_amount: int | None = None,
        *,
        price_id: str | None = None,
        product: str | None = None,
        currency: str = "usd",
        interval: str | None = "month",
        meter: str | None = None,
        **params: Any,
    ) -> str:
        """Add a price, under an id of the caller's choice if given. Returns the id.

        ``add_price(2900)`` is 29 USD a month, ``add_price(12, meter=emulator.add_meter("tokens"),
        transform_quantity={"divide_by": 1000, "round": "up"})`` 12 cents for each 1000 of a meter.

        Args:
            unit_amount: in minor units of the currency; None where ``params`` give another amount.
            price_id: any text; None: a fresh id.
            product: its id; None: a new product.
            currency: three letters.
            interval: ``day``, ``week``, ``month`` or ``year``; None: it is charged once.
            meter: id of the meter whose usage is charged; None: a quantity is charged in advance.
            params: other parameters of ``POST /v1/prices``.

        Raises:
            ApiError: Stripe would refuse it, or there is no such product or meter.
            ValueError: the id is taken.
        """
        usage = {} if meter is None else {"usage_type": "metered", "meter": meter}
        recurring = (
            None if interval is None else {"interval": interval, **usage, **params.pop("recurring", {})}
        )
        given = {"unit_amount": unit_amount, "currency": currency, "recurring": recurring, **params}
        params_read = _encode_params(given)
        with self._account.lock:
            price = read_price(self._account, params_read)
            price.id = price_id or price.id
            product = product or self.add_product(price_id or "Product")
            sold = self._account.products.find(product, param="product")
            return make_price(self._account, price, params_read, call=self._call(), product=sold).id

    def add_payment_method(self, customer: str, card: str = "pm_card_visa") -> str:
        """Give a customer a card, which its subscriptions are charged with. Returns the card's id.

        Args:
            customer: its id.
            card: one of Stripe's test cards: ``pm_card_visa``; charges of ``pm_card_chargeDeclined`` fail,
                and those of ``pm_card_authenticationRequired`` without their customer. Charges of
                ``pm_card_authenticationRequiredOnSetup`` fail until :meth:`confirm_setup`.

        Raises:
            ApiError: there is no such customer or card.
        """
        with self._account.lock:
            owner = self._account.customers.find_existing(customer)
            method = self._account.payment_methods.attach(card, customer=customer, now=self._account.now)
            owner.default_payment_method = method.id
            return method.id

    def fail_payments(self, customer: str) -> None:
        """Let payments of a customer fail from now on, whatever its card."""
        with self._account.lock:
            self._account.payment_methods.failing.add(customer)

    def mend_payments(self, customer: str) -> None:
        """Let payments of a customer succeed again. Open invoices are paid by retries, or by a call."""
        with self._account.lock:
            self._account.payment_methods.failing.discard(customer)

    def confirm_payment(self, invoice: str, *, card: str = "pm_card_visa") -> None:
        """Pay an open invoice as a customer does in a browser, with the invoice's client secret.

        The card becomes the subscription's own where that is to be saved, else the customer's default.

        Args:
            invoice: its id, or its ``confirmation_secret.client_secret``.
            card: one of Stripe's test cards.

        Raises:
            ApiError: there is no such invoice or card.
            ValueError: the invoice is not open, or the payment fails.
        """
        with self._account.lock:
            self.advance()
            found = next(
                (each for each in self._account.invoices if invoice in {each.id, each.client_secret}), None
            )
            if found is None or found.status != "open":
                raise ValueError(f"{invoice} is no invoice that is open")
            method = self._account.payment_methods.attach(
                card, customer=found.customer, now=self._account.now
            )
            if not attempt_payment(self._account, found, method=method.id, by_itself=False, is_present=True):
                raise ValueError(f"the payment of {found.id} with {card} has failed")
            method.is_set_up = True  # https://docs.stripe.com/billing/subscriptions/payment-methods-setting
            self._save_payment_method(found.subscription, method.id, customer=found.customer)

    def dispute_payment(
        self, invoice: str, *, amount: int | None = None, status: str = "needs_response"
    ) -> None:
        """Dispute the payment of an invoice: the customer's bank takes it back.

        https://docs.stripe.com/disputes/how-disputes-work

        Args:
            invoice: its id.
            amount: the part that is disputed (minor units); None: all of it.
            status: how the dispute stands: ``won`` once the bank has given the money back.

        Raises:
            ApiError: there is no such invoice.
            ValueError: nothing was charged for it.
        """
        with self._account.lock:
            found = self._account.invoices.find(invoice)
            if found.charge is None:
                raise ValueError(f"nothing was charged for {invoice}")
            found.disputed = True
            dispute = Dispute(
                id=new_id("du_1", length=23),
                created=self._account.now,
                amount=found.amount_paid if amount is None else amount,
                currency=found.currency,
                payment_intent=found.payment_intent,
                charge=found.charge,
                status=status,
                livemode=found.livemode,
            )
            self._account.add(self._account.disputes, dispute, "charge.dispute.created")

    def confirm_setup(self, client_secret: str, *, card: str | None = None) -> None:
        """Authenticate a card for later payments, as a customer does in a browser: ``confirmCardSetup``.

        Args:
            client_secret: of the setup intent.
            card: one of Stripe's test cards, in place of the intent's payment method; default for the setup
                intent of a subscription: ``pm_card_visa``.

        Raises:
            ApiError: there is no such setup intent or card.
            ValueError: the setup intent has ended, or the card is declined.
        """
        with self._account.lock:
            self.advance()
            confirm_setup(self._account, client_secret, card=card)

    def cancel_setup(self, client_secret: str) -> None:
        """End a setup intent that was not confirmed, as a person may in Stripe's Dashboard.

        Args:
            client_secret: of the setup intent.

        Raises:
            ApiError: there is no such setup intent.
        """
        with self._account.lock:
            self.advance()
            intent = find_setup_intent(self._account.setup_intents, client_secret)
            cancel_setup(self._account, intent, reason="abandoned")

    def advance(self) -> None:
        """Carry out all transitions that are due: renewals, ends of trials, retries and others.

        Each happens at its own instant, in order. Every API request does the same first.
        """
        run_due_transitions(self._account)

    def move_clock(self, *, to: float) -> None:
        """Move the emulator's clock and carry out all transitions that are due by then.

        Args:
            to: Unix seconds. A clock that runs goes on from there.

        Raises:
            ValueError: it lies in the past, or after the year 2999.
        """
        with self._account.lock:
            now = self.clock()
            if not to <= CLOCK_MAX:
                raise ValueError(f"the clock can be moved to {utc_text(CLOCK_MAX)} at most")
            if to < now:
                raise ValueError(f"the clock cannot be moved back: it is {utc_text(now)} already")
            if isinstance(self.clock, Clock):
                self.clock.set(datetime.fromtimestamp(to, UTC))
            else:
                self.clock = OffsetClock(self.clock, by_s=to - now)
            self.advance()
            self._account.wake()

    def _save_payment_method(self, subscription: str | None, method: str, *, customer: str) -> None:
        found = None if subscription is None else self._account.subscriptions.find(subscription)
        if found is not None and found.save_payment_method == "on_subscription":
            found.default_payment_method = method
        else:
            self._account.customers.find(customer).default_payment_method = method

    def _call(self) -> Call:
        return Call(method="POST", path="", params=Params(""), now=self.clock())


def _encode_params(given: Mapping[str, object]) -> Params:
    return Params(urlencode(list(_encode_fields(given))))


def _encode_fields(given: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield form fields: ``{"recurring": {"interval": "month"}}`` is ``recurring[interval]=month``."""
    if isinstance(given, dict):
        for name, value in cast("dict[str, object]", given).items():
            yield from _encode_fields(value, f"{path}[{name}]" if path else str(name))
    elif isinstance(given, list | tuple):
        for place, value in enumerate(cast("list[object]", given)):
            yield from _encode_fields(value, f"{path}[{place}]")
    elif given is not None:
        yield path, str(given).lower() if isinstance(given, bool) else str(given)


class OffsetClock:
    """A clock that is ahead of another."""

    def __init__(self, clock: Callable[[], float], *, by_s: float) -> None:
        self._clock = clock
        self._by_s = by_s

    def __call__(self) -> float:
        """Return Unix seconds."""
        return self._clock() + self._by_s


def utc_text(now: float) -> str:
    """Return Unix seconds as ISO 8601 in UTC."""
    return datetime.fromtimestamp(now, UTC).isoformat()
