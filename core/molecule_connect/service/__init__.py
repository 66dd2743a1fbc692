"""Run ``molecule connect`` as a service of systemd or launchd."""
