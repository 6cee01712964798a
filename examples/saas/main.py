"""uvicorn main:app"""

from app import PLANS, create_app

from meterkit import MeterKit

app = create_app(MeterKit(PLANS))
