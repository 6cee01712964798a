"""gunicorn "app:create_app()"."""

bind = "127.0.0.1:8000"
workers = 2
worker_class = "uvicorn_worker.UvicornWorker"
# Each worker connects to the store after the fork; nothing but the plans file is read before.
preload_app = True
# Longer than what meterkit takes to send what the last requests used.
graceful_timeout = 30
