-- Constants of all scripts. When a script is loaded, each name is replaced by its value, which costs the server nothing.

-- Reply codes; those of store/replies.py have the same names.
local ALLOWED = 0
local REFUSED = 1
local STALE = 2 -- The caller's view of the customer is not the current state.
local CLOCK = 3 -- The clocks of caller and server differ too much.
local CONFIRMED = 4 -- Of decide: the rev is current.
local COUNTED = 5 -- Of decide: refused, but counted and held (shadow mode).
local REPEAT = 6 -- Of decide: the first request with the idempotency key was billed.
local IN_FLIGHT = 7 -- Of decide: the first request with the idempotency key has not ended.
local REPEAT_REFUSED = 8 -- Of decide: a rate or a concurrency limit refuses a repeat.
local BROKEN = 4 -- A stored field is not a whole number.

-- Reply codes of settle; those of redis/settlement_queue.py.
local OK = 0
local DUPLICATE = 1
local GAP = 2
local FENCED = 3
local SETTLE_OFFSET = 2 -- Added to STALE and CLOCK, which are 4 and 5 there.
local TOO_MUCH = 6 -- A total would pass 9 * 10^15.
local INVALID_FIELD = 7 -- A stored field is damaged.
local EVENT_CONFLICT = 8 -- The event id has counted another quantity.
local EVENT_PARTLY = 9 -- The event id has counted some of the meters.

-- Reply codes of other scripts; OK and BROKEN are theirs, too.
local CHANGED = 1 -- The state or the intent has changed since the caller read it.
local UNCOUNTABLE = 2 -- A total of the customer is not a whole number.
local UNDELIVERED = 2 -- Of forget_customer: usage is on its way to Stripe.
local PARKED = 3 -- Usage is parked or dead.
local ID_USED = 1 -- Of add_grant: the id has another grant.
local BALANCE_TOO_LARGE = 2 -- The balance would pass 9 * 10^15.
local TOO_MANY = 3 -- The customer would have too many grants.
local DONE_BEFORE = 1 -- Of correct_usage: the id is known.
local CHANGING = 9 -- Prices are changing, or have changed since the invoices were read.
local COUNTED_BEFORE = 1 -- Of set_level: the event id has counted this.
local OUT_OF_BOUNDS = 4 -- The level would be below 0 or above 10^15 - 1.
local CHANGED_OTHERWISE = 5 -- The event id has changed the gauge in another way.
local TOO_MANY_UPLOADS = 1 -- Of hold_upload.
local OTHER_STATE = 1 -- Of move_intents: the intent is gone, or in another state.
local LEASE_LOST = 2 -- Another flusher has the shard.
local AUDIT_WAITS = 1 -- Of rebuild_counters: entries of the audit log have not been drained.
local OTHER_PERIOD = 5 -- The customer is in another period.
local NO_MINUTE = 6 -- The period has no minute left for an intent.

-- Reply codes that store/replies.py has, too.
local TOP_UP_NOT_BEGUN = 0 -- Of move_auto_top_up.
local TOP_UP_BEGUN = 1
local SYNC_REPEATED = 0 -- Of queue_sync: the event was queued before.
local SYNC_QUEUED = 1
local SYNC_NO_ROOM = 2 -- The sync is queued without its note.
local INTENT_GONE = 0 -- Of refuse_intent: no such intent, or it is parked or dead.
local INTENT_REFUSED = 1
local INTENT_LEASED = 2 -- A flusher is sending it.
local TOTALS_UNCOUNTABLE = 3 -- A total of the customer is not a whole number.
local ITEM_SETTLED_BEFORE = 0 -- Of settle_item.
local ITEM_SETTLED = 1

-- Formats of what is stored.
local FORM = -3 -- The first number of a packed field: what is stored has this format. Below 0: no text begins so.
local BALANCE_FORM = '2' -- Of the field "balance": 1 knew of no debts, and is read anew.
local NO_STATE = '3:0' -- The rev of a customer without a state.
local EMPTY_HEAD = '\253\000\000\000\000\160' -- Packed: FORM, four zeros, no rev.
local EMPTY_METER = '\253\000\000\000\000\000\000\160' -- Packed: FORM, six zeros, no extras.
local EMPTY_EXTRAS = '\000\000\000\000\000'
local EMPTY_LEVEL = '\253\000\000\000'
local EMPTY_LISTING = '\253\000\000' -- Packed: FORM, two zeros.
local EMPTY_HOLDS = '\253' -- Packed: FORM.
local EMPTY_EVENT = '\253' -- Packed: FORM.
local EMPTY_LIFE = '\253\000' -- Packed: FORM, a zero.
local EMPTY_WINDOW = '\253\000\000\000'
local MOST = 9000000000000000 -- The most that is counted: below 2^53.
local UNCAPPED = 8000000000000000 -- Stands for a cap where a meter has none.
local NEVER_MS = 9000000000000000
local VALUE_MOST = 999999999999999 -- The most that Stripe takes in a value.
local FIXED_WINDOW = 2 -- Kinds of rates, as their terms number them; 1 is a sliding window.
local TOKEN_BUCKET = 3
local RATE_BYTES = 48 -- Of a rate in the terms of decide: six doubles.
local CEILING_BYTES = 32 -- Of a ceiling or a concurrency limit: four doubles.
local SETTLE_NAMES = 3 -- In settle, the name of fields[place] is ARGV[SETTLE_NAMES + place].
local METER_BYTES = 56 -- Of a meter in the terms of settle: seven doubles.
local SETTLED_RATE_BYTES = 40 -- Of a rate: five doubles.
local THRESHOLD_BYTES = 32 -- Of a threshold: four doubles.
local PRICE_BYTES = 24 -- Of a price: three doubles.
local REPORTED_BY_DERIVED = 1 -- Units of a meter are reported under the event of a derived meter,
local REPORTS_FOR_SOURCE = 2 -- which reports them.
local PRICE_ROW = 3 -- Units of a meter are overage of the meter before it, at the price of a model.
local NOT_BILLED = 0 -- Of usage that is too late for its own invoice:
local BILLED_IN_PERIOD = 1 -- by the invoice of the open period,
local BILLED_BY_ITEM = 2 -- by an invoice item.
local CORRECTION_UNDONE = 3 -- A correction of it is undone.
local CONSUMER = 'meterkit' -- Of notices: all processes are one, whoever asks.
local NOTICES_MOST = 1000 -- That a shard keeps.
local HINTS_MOST = 200 -- Notes that wait with one Stripe customer.
local HISTORY_MOST = 1000 -- Changes of a customer.
local AUDIT_FOLDED = 128 -- Entries of the audit log that are added up at once: far fewer than wait there then.
local UNCOMPARED = -1 -- Stands for the quantity of an event id where any is the same.
local OBJECT_REMOVED = 0 -- What is known of a stored object: by an event,
local OBJECT_STORED = 1
local OBJECT_LISTED = 2 -- or by a listing alone.
local LIVE_SUBJECTS_MOST = 100000 -- Users, teams and the like of one customer, with counters that have not expired.
local PRESIGNED_MOST = 401 -- Numbers of the presigned uploads of one key: a hundred in an hour.
local REBUILT_AGE_MS = 86400000 -- rebuild_counters parks an intent as if it was first tried a day ago,
local REBUILT_COMPARE_MS = 7200000 -- and compares it two hours later: see outbox/resend_window.py.
local SKEW_MS = 2000 -- How far Stripe's clock may be behind.
local MINUTE_MS = 60000
local HOLD_SLOT_MS = 300000
local QUARTER_HOUR_MS = 900000
local HOUR_MS = 3600000
local DAY_MS = 86400000
local SEVEN_DAYS_MS = 604800000
local EIGHT_DAYS_MS = 691200000
local LONG_WINDOW_MS = 90000000 -- Windows beyond a day, and an hour for the clock, move in whole seconds.
local THIRTY_FIVE_DAYS_MS = 3024000000
local UNLINKED_KEPT_MS = 3024000000 -- Usage of an unlinked customer waits 35 days beyond its period.
local THIRTY_SIX_DAYS_MS = 3110400000
local FORTY_DAYS_MS = 3456000000
local FOUR_HUNDRED_DAYS_MS = 34560000000
