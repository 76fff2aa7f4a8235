"""Hours in minutes: mixed traffic and churn, and a trend for everything that can grow: ``python -m lab soak``."""
