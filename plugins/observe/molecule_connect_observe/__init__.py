"""Health checks and Prometheus metrics of molecule-connect."""

from molecule_connect_observe.observer import HttpObserver

__all__ = ["HttpObserver"]
