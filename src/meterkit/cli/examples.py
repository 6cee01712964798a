"""Examples at the end of each ``--help``: what for, and what to type.

Lines have at most 76 characters, so that they fit a terminal of 80 columns. A test parses each example.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_INTENT: Final = "9f2c61d0b4e84c2f8b0c3a5d7e6f1029-1"

EXAMPLES: Final[Mapping[str, Mapping[str, str]]] = {
    "": {
        "See it work, from requests to the bill": "meterkit demo",
        "Check a plans file": "meterkit check plans.yaml",
        "Show what a customer has used": "meterkit usage ada",
    },
    "demo": {
        "Run it once": "meterkit demo",
        "Also serve its pages, to look at in a browser": "meterkit demo --keep",
    },
    "check": {
        "Check plans.yaml of this directory": "meterkit check",
        "Check another file in CI": "meterkit check next.yaml --json",
    },
    "schema": {
        "Save the schema for your editor": "meterkit schema > plans.schema.json",
    },
    "routes": {
        "Show the routes of `app` in main.py": "meterkit routes main:app",
        "Show the routes of an app that a function makes": "meterkit routes shop.api:make_app --factory",
        "Find out which plan route decides a request": (
            "meterkit routes main:app --readings 'POST /v1//chat'"
        ),
    },
    "doctor": {
        "Check the deployment, with the app's settings": "meterkit doctor",
        "Check it from a monitoring job": "meterkit doctor --json",
    },
    "worker": {
        "Deliver until Ctrl-C": "meterkit worker",
        "Write the log as JSON": "meterkit worker --log-format json",
        "Send e-mails to the addresses that your function returns": (
            "meterkit worker --contact shop.people:contact"
        ),
    },
    "flush": {
        "Deliver what is due, as a cron job does": "meterkit flush",
        "Deliver everything before a deployment": "meterkit flush --all --timeout 60",
    },
    "outbox": {
        "List what Stripe does not have yet": "meterkit outbox list",
        "Retry all that Stripe refused": "meterkit outbox redrive --all",
    },
    "outbox list": {
        "List all undelivered usage": "meterkit outbox list",
        "List what Stripe refused for one customer": "meterkit outbox list --state dead --customer ada",
    },
    "outbox show": {
        "Show why an intent is not delivered": f"meterkit outbox show {_INTENT}",
    },
    "outbox redrive": {
        "Retry one intent": f"meterkit outbox redrive {_INTENT}",
        "Retry all of a customer": ("meterkit outbox redrive --all --customer ada --reason 'meter restored'"),
    },
    "outbox park": {
        "Hold an intent back": f"meterkit outbox park {_INTENT} --reason 'ticket 81'",
    },
    "outbox drop": {
        "Never bill an intent": f"meterkit outbox drop {_INTENT} --reason 'ticket 81'",
    },
    "usage": {
        "Show a customer's usage in this period": "meterkit usage ada",
        "Show another month by model": "meterkit usage ada --period 2026-10 --by model",
        "Export the usage of all customers": "meterkit usage --all --csv > usage.csv",
    },
    "statement": {
        "Show the bill so far": "meterkit statement ada",
        "Export all events of October": "meterkit statement ada --period 2026-10 --csv > october.csv",
    },
    "customers": {
        "Show one customer": "meterkit customers show ada",
        "Put a customer on a plan": "meterkit customers set-plan ada pro",
        "Bill a customer through Stripe": "meterkit customers link ada cus_NffrFeUfNV2Hib",
    },
    "customers show": {
        "Show a customer's plan, status and overrides": "meterkit customers show ada",
    },
    "customers list": {
        "List the customers as a table": "meterkit customers list",
        "List them for a program": "meterkit customers list --json",
    },
    "customers link": {
        "Link one customer": "meterkit customers link ada cus_NffrFeUfNV2Hib",
        "Link the customers of a file": "meterkit customers link --csv links.csv",
    },
    "customers unlink": {
        "Stop sending a customer's usage to Stripe": "meterkit customers unlink ada",
    },
    "customers set-plan": {
        "Put a customer on a plan": "meterkit customers set-plan ada pro",
        "Go back to the subscription's plan, or the default plan": "meterkit customers set-plan ada --clear",
    },
    "customers override": {
        "Include 9,000 words a period until the new year": (
            "meterkit customers override ada words included=9_000 --until 2027-01-01"
        ),
        "Slow one user down": ("meterkit customers override ada words rate=10/minute --subject user=u_7"),
        "Go back to the plan's limit": "meterkit customers override ada words --clear",
    },
    "customers set-status": {
        "Treat a customer as not having paid": "meterkit customers set-status ada past_due",
        "Remove that status": "meterkit customers set-status ada none",
    },
    "customers delete": {
        "Delete a customer without a subscription": "meterkit customers delete ada",
        "End the subscription first, and bill its usage": "meterkit customers delete ada --cancel",
    },
    "customers history": {
        "Show who changed a customer, and when": "meterkit customers history ada",
    },
    "correct": {
        "See what would change": "meterkit correct ada words=1_200 --dry-run",
        "Take back 1,200 words": ("meterkit correct ada words=1_200 --reason 'our bug' --id ticket_81"),
        "Also credit what is billed already": (
            "meterkit correct ada words=1_200 --reason 'our bug' --id ticket_81 --credit"
        ),
    },
    "grants": {
        "Give a customer 500 credits": "meterkit grants add ada ai=500 --id inv_42",
        "List a customer's grants": "meterkit grants list ada",
    },
    "grants add": {
        "Grant credits and words that a customer bought": (
            "meterkit grants add ada ai=500 words=10_000 --id inv_42"
        ),
        "Grant credits that expire": "meterkit grants add ada ai=50 --id spring --expires 2027-06-01",
    },
    "grants list": {
        "Show what is left of each grant": "meterkit grants list ada",
    },
    "grants void": {
        "Take back the rest of a grant": "meterkit grants void ada inv_42",
    },
    "grants ledger": {
        "Show where a customer's credits went": "meterkit grants ledger ada",
    },
    "plans": {
        "Move the customers of an old plan": "meterkit plans migrate basic pro",
    },
    "plans migrate": {
        "See who would move": "meterkit plans migrate basic pro --dry-run",
        "Move them": "meterkit plans migrate basic pro",
        "Bill usage by invoice lines from the next period on": "meterkit plans migrate --usage lines",
    },
    "subscriptions": {
        "Show a customer's subscription": "meterkit subscriptions show ada",
        "Compare all subscriptions with the plans file": "meterkit subscriptions check",
    },
    "subscriptions show": {
        "Show plan, status, seats and period": "meterkit subscriptions show ada",
    },
    "subscriptions preview": {
        "Show what a plan with 12 seats costs": ("meterkit subscriptions preview ada --plan pro --seats 12"),
    },
    "subscriptions change": {
        "Change a customer's plan": "meterkit subscriptions change ada pro",
    },
    "subscriptions seats": {
        "Set the number of seats to 12": "meterkit subscriptions seats ada 12",
    },
    "subscriptions addons": {
        "Buy two of an add-on": "meterkit subscriptions addons ada storage_pack=2",
        "Give one up when the period ends": "meterkit subscriptions addons ada storage_pack=1",
    },
    "subscriptions cancel": {
        "Cancel at the end of the period": "meterkit subscriptions cancel ada",
        "End now, and credit the rest of the period": (
            "meterkit subscriptions cancel ada --immediately --give-back"
        ),
    },
    "subscriptions resume": {
        "Keep a subscription that was to end": "meterkit subscriptions resume ada",
    },
    "subscriptions invoices": {
        "List a customer's invoices": "meterkit subscriptions invoices ada",
    },
    "subscriptions sync": {
        "Fetch a subscription after a missed webhook": "meterkit subscriptions sync ada",
    },
    "subscriptions check": {
        "Find subscriptions that need a repair": "meterkit subscriptions check",
    },
    "subscriptions repair": {
        "See what would be repaired": "meterkit subscriptions repair ada --dry-run",
        "Repair it": "meterkit subscriptions repair ada",
    },
    "reconcile": {
        "Compare all customers": "meterkit reconcile",
        "Compare one customer's October": "meterkit reconcile ada --period 2026-10",
        "Also resolve what has only one explanation": "meterkit reconcile --repair",
    },
    "recover": {
        "See what a restore has left": "meterkit recover --dry-run",
        "Settle it after restoring the backup of that instant": (
            "meterkit recover --since 2027-01-01T03:00:00Z"
        ),
    },
    "audit": {
        "Check the audit log": "meterkit audit verify",
        "See which counters the store has lost": "meterkit audit rebuild --dry-run",
    },
    "audit rebuild": {
        "See which counters are too low": "meterkit audit rebuild --dry-run",
        "Rebuild the counters of one customer": "meterkit audit rebuild --customer ada",
    },
    "audit verify": {
        "Check all customers": "meterkit audit verify",
        "Check one customer's October, invoices too": ("meterkit audit verify ada --stripe --period 2026-10"),
    },
    "revenue": {
        "Show the last day": "meterkit revenue",
        "Export a month": "meterkit revenue --from 2026-10-01 --to 2026-10-31 --csv",
    },
    "revenue spend": {
        "Record $1,500.00 for a day": "meterkit revenue spend 2026-10-01=150000",
    },
    "simulate": {
        "Try new plans on last month's usage": "meterkit simulate --plans next.yaml",
        "Try them on one customer's October": (
            "meterkit simulate --plans next.yaml --period 2026-10 --customer ada"
        ),
        "Count your own cost, 40 cents per 1,000 words": (
            "meterkit simulate --plans next.yaml --cost words=40"
        ),
    },
    "storage": {
        "Show by how much the stored bytes differ": "meterkit storage recalculate --dry-run",
    },
    "storage recalculate": {
        "Show by how much the stored bytes differ": "meterkit storage recalculate --dry-run",
        "Correct them for one customer": "meterkit storage recalculate ada",
    },
    "stripe": {
        "Create what the plans file needs at Stripe": "meterkit stripe sync",
        "Develop without a Stripe account": "meterkit stripe emulator --plans plans.yaml",
    },
    "stripe sync": {
        "See what would be created": "meterkit stripe sync --dry-run",
        "Create it": "meterkit stripe sync",
    },
    "stripe emulator": {
        "Emulate the account of a plans file": "meterkit stripe emulator --plans plans.yaml",
        "Post webhooks to your app": (
            "meterkit stripe emulator \\\n  --forward-to http://127.0.0.1:8000/billing/webhooks/stripe"
        ),
    },
    "webhooks": {
        "List what failed": "meterkit webhooks list",
        "Retry all of it": "meterkit webhooks redrive",
    },
    "webhooks list": {
        "List what failed": "meterkit webhooks list",
        "Watch it from a monitoring job": "meterkit webhooks list --json",
    },
    "webhooks redrive": {
        "Retry all": "meterkit webhooks redrive",
        "Retry one Stripe customer": "meterkit webhooks redrive cus_NffrFeUfNV2Hib",
    },
    "notify": {
        "List messages that were not delivered": "meterkit notify list",
        "See what a customer gets": "meterkit notify preview usage.threshold",
    },
    "notify list": {
        "List messages that were not delivered": "meterkit notify list",
    },
    "notify redrive": {
        "Retry all dead messages": "meterkit notify redrive",
        "Retry one message": "meterkit notify redrive msg_2f6c0a6f0f6f4f0e9d1c7b3a5e8d9c01",
    },
    "notify preview": {
        "See the warning of a limit": "meterkit notify preview usage.threshold",
        "See it in a customer's language": "meterkit notify preview usage.threshold --locale de",
    },
    "import": {
        "See which customers of Stripe would be linked": "meterkit import stripe --dry-run",
    },
    "import stripe": {
        "See who would be linked": "meterkit import stripe --dry-run",
        "Your ids are in the metadata of Stripe customers": (
            "meterkit import stripe --id-from metadata.account_id"
        ),
        "Your ids are in a file": "meterkit import stripe --csv links.csv",
    },
}
"""By command, without ``meterkit``: each purpose with its command line."""
