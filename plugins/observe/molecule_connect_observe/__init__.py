"""Health checks, Prometheus metrics and OpenTelemetry traces of molecule-connect."""

from molecule_connect_observe.observer import HttpObserver

__all__ = ["HttpObserver"]
