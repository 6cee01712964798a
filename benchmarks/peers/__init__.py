"""The applications that are measured: each module builds the same app behind one limiter."""
