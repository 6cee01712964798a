"""What both sides of the field tests know: the app, and those who look at it from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Final

PLANS: Final = Path(__file__).with_name("plans.yaml")
LATE_WORDS: Final = 3
CHAT_INPUT: Final = 11
CHAT_OUTPUT: Final = 7
EVENTS: Final = {
    "requests": "api_requests",
    "words": "api_words",
    "input_tokens": "ai_input_tokens",
    "output_tokens": "ai_output_tokens",
}
