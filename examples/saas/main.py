"""uvicorn main:app"""

import os

from app import PLANS, create_app

from meterkit import MeterKit

app = create_app(MeterKit(PLANS), os.environ.get("OPERATOR_KEY"))
